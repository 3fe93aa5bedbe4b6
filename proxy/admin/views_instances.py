"""SHOW INSTANCES: the proxies that tell each other of loads, as the control database has them."""

from __future__ import annotations

from foreshard.proxy.admin.results import ResultSet, cells, make_result
from foreshard.proxy.admin.sources import ConsoleSources
from foreshard.proxy.control.load_exchange import LEASE_S, instance_name
from foreshard.proxy.errors import SqlError

INSTANCES = f"""
SELECT instance, CASE WHEN age_s > {LEASE_S} THEN 'lapsed' ELSE 'live' END, age_s, {LEASE_S} - age_s,
  (SELECT sum(one) FROM unnest(rows) AS one)::bigint, (SELECT sum(one) FROM unnest(measured) AS one),
  (SELECT sum(one) FROM unnest(pending) AS one)
FROM foreshard.load, extract(epoch FROM clock_timestamp() - told_at) AS age_n, CAST(age_n AS float8) AS age_s
ORDER BY instance
"""
COLUMNS = (
    "instance this:bool state heard_ago_s:float lease_left_s:float rows_placed:bigint measured_s:float pending_s:float"
)


async def show_instances(sources: ConsoleSources) -> ResultSet:
    """Each proxy with its lease and the sums over its shards; pending is below 0 where it measured others' rows."""
    answer = await sources.ask_control(INSTANCES)
    if answer.error is not None:
        raise SqlError("08006", f"the control database does not answer: {answer.error}")
    own = instance_name(sources.config)
    return make_result(COLUMNS, [(*cells(row[:1]), row[0] == own, *cells(row[1:])) for row in answer.rows])
