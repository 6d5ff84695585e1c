"""Replay reference measurements through the models and report the error."""
