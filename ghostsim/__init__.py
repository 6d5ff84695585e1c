"""Does eliminating KV-cache entries before they move make LLM decode faster? ghostsim answers."""

__version__ = "0.1.0"
