"""Command: imports released weights and exports trained ones."""
