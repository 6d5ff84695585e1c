"""Questions answered with the tool: evidence, claims held against it, a verdict that follows, and its page."""
