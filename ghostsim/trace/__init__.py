"""Attention traces: their format, rotary positions, composition to longer contexts, and what a trace holds."""
