"""The demo: the standard library's sources through real trigger functions."""
