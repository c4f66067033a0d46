"""Shadows PyTorch, so that commands run as without it."""

raise ImportError("not installed")
