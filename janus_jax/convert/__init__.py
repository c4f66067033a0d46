"""Command: imports and exports released weights."""
