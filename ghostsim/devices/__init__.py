"""Simulated hardware, one file per kind: each device turns work into flows and delays."""
