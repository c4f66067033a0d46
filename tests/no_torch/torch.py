"""Stands before PyTorch where a command runs as its users have it: without."""

raise ImportError("not installed")
