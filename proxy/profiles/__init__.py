"""Profiles of trigger functions: priors, versions, persistence format."""
