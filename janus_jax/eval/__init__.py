"""Scores: one file per benchmark family."""
