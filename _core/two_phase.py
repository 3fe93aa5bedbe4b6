"""Names of prepared transactions: `foreshard/<cluster>/<decision shard>/<id>/<participant shard>`.

Everything that recovery needs stands in the name, and nothing of the process that made it: any controller can resolve
it, at any time. The id is that of the row in foreshard.decision on the decision shard, which says how the whole ends.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

PREFIX = "foreshard"
GID_BYTES_MAX = 199  # PostgreSQL's GIDSIZE is 200, with the terminating zero
ID_BYTES = 16

# No quote, so a gid stands in SQL as it is; no slash inside a part, so it is read back in one way only.
_PART = re.compile(r"[^/'\\\s\x00-\x1f\x7f]+\Z")
_ID = re.compile(r"[0-9a-f]{32}\Z")


class Gid(NamedTuple):
    """The parts of one name."""

    cluster: str
    decision_shard: str
    id: str
    participant: str


def new_id() -> str:
    """32 hexadecimal digits that no other transaction has."""
    return os.urandom(ID_BYTES).hex()


def gid_prefix(cluster: str) -> str:
    """What the names of all prepared transactions of a cluster begin with, and no others do."""
    return f"{PREFIX}/{cluster}/"


def make_gid(cluster: str, decision_shard: str, id: str, participant: str) -> str:
    """The name of one participant's prepared transaction. ValueError for parts that it could not be read back from."""
    for part in (cluster, decision_shard, participant):
        if not _PART.match(part):
            raise ValueError(f"{part!r} cannot be part of a prepared transaction's name")
    if not _ID.match(id):
        raise ValueError(f"{id!r} is no transaction id: it has 32 hexadecimal digits")
    gid = "/".join((PREFIX, cluster, decision_shard, id, participant))
    if len(gid.encode()) > GID_BYTES_MAX:
        raise ValueError(f"{gid!r} has more than {GID_BYTES_MAX} bytes: give the shards shorter names")
    return gid


def parse_gid(gid: str) -> Gid | None:
    """The parts of a name; None when Foreshard did not make it."""
    parts = gid.split("/")
    if len(parts) != 5 or parts[0] != PREFIX or not _ID.match(parts[3]) or len(gid.encode()) > GID_BYTES_MAX:
        return None
    found = Gid(*parts[1:])
    is_ours = all(_PART.match(part) for part in (found.cluster, found.decision_shard, found.participant))
    return found if is_ours else None
