"""What EXPLAIN (FORESHARD) tells of a statement: found by the same code that routes it, changing nothing."""

from foreshard._core.template cimport (
    ROUTE_ANY,
    ROUTE_DEFAULT,
    ROUTE_KEYED,
    ROUTE_MULTI,
    ROUTE_PLACE,
    ROUTE_QUERY,
    ROUTE_REFUSE,
    ROUTE_SCATTER,
    Buckets,
    Template,
)
from foreshard._core.values cimport Values
from foreshard.proxy.wire.pool cimport Hub

from foreshard._core.errors import SqlError
from foreshard._core.template import RouteKind

ROUTE_NAMES = {int(kind): kind.name.removeprefix("ROUTE_").lower() for kind in RouteKind}
OPERATION_NAMES = ("select", "insert", "update", "delete", "other")


cdef enum:
    COMPUTED = -2       # as proxy/routing/rows has it


def tell_refusal(told: dict[str, object], refusal: SqlError) -> None:
    """What the client would hear."""
    told["refusal"] = refusal.message
    told["refusal_detail"] = refusal.detail
    told["refusal_hint"] = refusal.hint


cdef int found_at(
    Template template, Values literals, Values params, dict claims, Buckets buckets
) except -1:
    """The buckets of the keys, where their claims name others than the keys themselves."""
    cdef int position = 0
    buckets.clear()
    while position < template.key_count:
        if claims.get(position, -1) >= 0:
            buckets.add(claims[position])
        else:
            position = template.locate_at(position, literals, params, buckets)
        position += 1
    return 0


cdef list tell_claims(Hub hub, Template template, dict claims, dict homes):
    """For each key that has a claim, or could have: its home, and the bucket of its row (-1: there is none)."""
    return [
        (str(template.keys[position][2]), homes[position], hub.shard_names[hub.state.shard_of_bucket(homes[position])],
         bucket, hub.shard_names[hub.state.shard_of_bucket(max(bucket, 0))])
        for position, bucket in claims.items()
    ]


def explain_route(
    Hub hub, Template template, Values literals, Values params, int only_shard, claims: dict | None, homes: dict | None
) -> dict[str, object]:
    """The route as a dictionary of foreshard.proxy.admin.Explanation's fields, less the names of functions."""
    cdef double features[4]
    cdef Buckets buckets = hub.buckets
    cdef Py_ssize_t index
    cdef int kind = template.kind
    told = {
        "route": ROUTE_NAMES[kind],
        "operation": OPERATION_NAMES[template.operation],
        "table": template.table,
        "shards": [],
        "buckets": [],
        "pin": template.pin,
        "refusal": None,
        "features": None,
        "decision": None,
        "profiles": template.profiles,
        "merge": template.merge,
    }
    shards = []
    if kind == ROUTE_REFUSE:
        tell_refusal(told, template.refusal)
    elif kind == ROUTE_DEFAULT or kind == ROUTE_ANY or kind == ROUTE_MULTI:
        shards = [hub.default_shard]
    elif kind == ROUTE_QUERY:
        shards = [hub.query_shard]
    elif kind == ROUTE_SCATTER:
        shards = list(range(hub.shard_count))
    elif kind == ROUTE_KEYED:
        buckets.clear()
        template.locate(literals, params, buckets)
        if claims:
            told["claims"] = tell_claims(hub, template, claims, homes)
            found_at(template, literals, params, claims, buckets)
        told["buckets"] = [buckets.items[index] for index in range(buckets.count)]
        shards = sorted({hub.state.shard_of_bucket(bucket) for bucket in told["buckets"]})
        if buckets.every:
            shards = list(range(hub.shard_count))
        if len(shards) > 1 and template.one_shard_refusal is not None and not template.row_keys:
            tell_refusal(told, template.one_shard_refusal)
    if template.is_write and kind in (ROUTE_KEYED, ROUTE_PLACE) and template.operation != 0:
        template.read_features(literals, params, features)
        told["features"] = [features[index] for index in range(4)]
        told["computed"] = sum([source[0] == COMPUTED for source in template.values])
        only = only_shard if kind == ROUTE_PLACE else (shards[0] if shards else -1)
        is_new = claims is not None and template.new_keys and template.rows == 1 and claims.get(0, 0) < 0
        if is_new:      # a home that the transaction writes keeps its rows
            only = only_shard if only_shard == hub.state.shard_of_bucket(homes[0]) else -1
        told["decision"] = hub.placer.explain(
            told["features"], template.profiles, only, homes[0] if is_new else None)
        if is_new:
            shards = [told["decision"]["chosen"]]
            told["buckets"] = []
        elif kind == ROUTE_KEYED:     # its cost is charged where its key says; nothing is chosen
            told["decision"]["reason"] = "key"
            told["decision"]["candidates"] = []
    told["shards"] = [hub.shard_names[shard] for shard in shards]
    return told
