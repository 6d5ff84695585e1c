"""The KEEP / READ algebra: what a policy reads from a trace, and what that costs in quality."""
