"""One module per layout of released weights: its name table, and how to read and write its config."""
