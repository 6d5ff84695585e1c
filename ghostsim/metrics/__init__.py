"""Recorders on the probes of a run: utilisation, quantiles, critical path, energy."""
