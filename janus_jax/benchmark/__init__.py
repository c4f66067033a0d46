"""Command: measures speed with made-up data."""
