"""Command: scores a model, or writes the files that a benchmark's official scorer reads."""
