"""The built-in world of shapes: scenes, files, an exact reader, and scores."""
