"""Every fault on every sensor through the real pipeline, and what became of the map."""
