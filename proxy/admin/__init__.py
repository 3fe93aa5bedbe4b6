"""The console and what it shows."""
