"""Selection (what is read and what is lost) and Plan (the bytes that move), with their disk cache."""
