"""Runs as one frame, whatever they come from, and which of their rows may be fitted."""
