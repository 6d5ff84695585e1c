"""The decode step as a program of dependent rows, and the process that executes it."""
