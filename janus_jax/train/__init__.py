"""Command: trains a recipe, stage after stage."""
