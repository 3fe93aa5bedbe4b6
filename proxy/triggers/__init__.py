"""Trigger functions: capture, outbox, lanes, workers, measurement."""
