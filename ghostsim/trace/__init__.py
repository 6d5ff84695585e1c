"""Recorded attention: the format, its checks, composition to long contexts, statistics."""
