"""Grids of scenarios, run in processes, stored so that they can resume."""
