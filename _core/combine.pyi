"""Putting partial results of aggregates together: compiled code only."""
