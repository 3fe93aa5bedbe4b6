"""Profiles of trigger functions: keys, priors, versions, persistence format."""

from foreshard.proxy.profiles.keys import OPERATIONS, ProfileKey, profile_indexes, profile_keys

__all__ = ["OPERATIONS", "ProfileKey", "profile_indexes", "profile_keys"]
