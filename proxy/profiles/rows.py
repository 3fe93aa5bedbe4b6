"""How profiles are kept in the control database: the tables and what goes into a row.

`foreshard.profile` holds the latest state of each profile, `foreshard.profile_history` one row per version: the first
measurement, each doubling of samples, each drift reset, each loss and return of reliability. Arrays are in the order of
resources, with NULL where unknown.
"""

from __future__ import annotations

from typing import Any

import msgspec

from foreshard.proxy.profiles.priors import NOTHING_KNOWN, Costs

PROFILE_TABLE = """\
CREATE TABLE IF NOT EXISTS foreshard.profile (
  function text NOT NULL,
  operation text NOT NULL CHECK (operation IN ('insert', 'update', 'delete')),
  version bigint NOT NULL,
  samples bigint NOT NULL,
  degraded boolean NOT NULL,
  calls bigint NOT NULL,
  cpu_seconds double precision NOT NULL,
  wall_seconds double precision NOT NULL,
  queue_seconds double precision NOT NULL,
  q_median double precision,
  q_p95 double precision,
  q_medians double precision[] NOT NULL,
  q_p95s double precision[] NOT NULL,
  means double precision[] NOT NULL,
  state jsonb NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (function, operation)
);
COMMENT ON TABLE foreshard.profile IS 'what is known about the cost of each (trigger function, operation)';
COMMENT ON COLUMN foreshard.profile.q_median IS 'of the last q-errors of the scalar cost';
COMMENT ON COLUMN foreshard.profile.means IS 'CPU seconds, memory byte-seconds, I/O bytes, network bytes of one call';
"""

HISTORY_TABLE = """\
CREATE TABLE IF NOT EXISTS foreshard.profile_history (
  function text NOT NULL,
  operation text NOT NULL,
  version bigint NOT NULL,
  reason text NOT NULL CHECK (reason IN ('first', 'grown', 'drift', 'degraded', 'recovered')),
  samples bigint NOT NULL,
  means double precision[] NOT NULL,
  q_median double precision,
  q_p95 double precision,
  state jsonb NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (function, operation, version)
);
COMMENT ON TABLE foreshard.profile_history IS 'a profile as it was when its version began';
"""

UPSERT_PROFILE = """\
INSERT INTO foreshard.profile (function, operation, version, samples, degraded, calls, cpu_seconds, wall_seconds,
  queue_seconds, q_median, q_p95, q_medians, q_p95s, means, state)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
ON CONFLICT (function, operation) DO UPDATE SET (version, samples, degraded, calls, cpu_seconds, wall_seconds,
  queue_seconds, q_median, q_p95, q_medians, q_p95s, means, state, updated_at)
= (excluded.version, excluded.samples, excluded.degraded, excluded.calls, excluded.cpu_seconds, excluded.wall_seconds,
  excluded.queue_seconds, excluded.q_median, excluded.q_p95, excluded.q_medians, excluded.q_p95s, excluded.means,
  excluded.state, now())
"""

UPSERT_HISTORY = """\
INSERT INTO foreshard.profile_history (function, operation, version, reason, samples, means, q_median, q_p95, state)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (function, operation, version) DO UPDATE SET (reason, samples, means, q_median, q_p95, state, recorded_at)
= (excluded.reason, excluded.samples, excluded.means, excluded.q_median, excluded.q_p95, excluded.state, now())
"""

SELECT_PROFILES = """\
SELECT function, operation, version, calls, cpu_seconds, wall_seconds, queue_seconds, state::text AS state
FROM foreshard.profile
"""


def profile_sql() -> list[tuple[str, str]]:
    """What the control database needs for profiles: (object name, SQL), in order. Needs the schema."""
    return [("table foreshard.profile", PROFILE_TABLE), ("table foreshard.profile_history", HISTORY_TABLE)]


class ProfileRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of foreshard.profile, and of its history when `reason` is given."""

    function: str
    operation: str
    version: int
    samples: int = 0
    degraded: bool = False
    calls: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    queue_seconds: float = 0.0
    q_median: float | None = None
    q_p95: float | None = None
    q_medians: Costs = NOTHING_KNOWN
    q_p95s: Costs = NOTHING_KNOWN
    means: Costs = NOTHING_KNOWN
    state: dict[str, Any]
    reason: str | None = None

    def profile_values(self) -> tuple[object, ...]:
        """Parameters of UPSERT_PROFILE."""
        return (
            *(self.function, self.operation, self.version, self.samples, self.degraded, self.calls),
            *(self.cpu_seconds, self.wall_seconds, self.queue_seconds, self.q_median, self.q_p95),
            *(list(self.q_medians), list(self.q_p95s), list(self.means), encode_state(self.state)),
        )

    def history_values(self) -> tuple[object, ...]:
        """Parameters of UPSERT_HISTORY."""
        return (
            *(self.function, self.operation, self.version, self.reason, self.samples, list(self.means)),
            *(self.q_median, self.q_p95, encode_state(self.state)),
        )


def encode_state(state: dict[str, Any]) -> str:
    """A learner's state as JSON."""
    return msgspec.json.encode(state).decode()


def decode_state(text: str) -> dict[str, Any]:
    """A learner's state from JSON; empty (which no learner takes) when it is not an object."""
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError:
        return {}
