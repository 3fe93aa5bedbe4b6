"""Nothing of it can be called from Python."""
