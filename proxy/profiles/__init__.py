"""Profiles of trigger functions: keys, priors, versions, persistence format."""

from foreshard.proxy.profiles.keys import OPERATIONS, ProfileKey, profile_indexes, profile_keys
from foreshard.proxy.profiles.priors import (
    FIRST_GUESS,
    Costs,
    ceilings_of,
    first_known,
    geometric_mean,
    registered_prior,
)
from foreshard.proxy.profiles.profile import Profile
from foreshard.proxy.profiles.rows import ProfileRow, decode_state, profile_sql

__all__ = [
    "FIRST_GUESS",
    "OPERATIONS",
    "Costs",
    "Profile",
    "ProfileKey",
    "ProfileRow",
    "ceilings_of",
    "decode_state",
    "first_known",
    "geometric_mean",
    "profile_indexes",
    "profile_keys",
    "profile_sql",
    "registered_prior",
]
