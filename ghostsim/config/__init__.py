"""Strict YAML with file, line and column in every error, and the models of everything configurable."""
