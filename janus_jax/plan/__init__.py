"""Command: memory, FLOPs and days of a run on accelerators that are not attached."""
