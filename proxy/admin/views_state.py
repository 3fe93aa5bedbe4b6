"""What the console shows from shared state: shards, bucket map, placement, ledgers."""

from __future__ import annotations

import time
from collections import Counter
from urllib.parse import urlsplit

from foreshard._core.placement import CANDIDATE_COUNT
from foreshard.proxy.admin.explain import REASONS
from foreshard.proxy.admin.results import Cell, ResultSet, cells, make_result, show_value
from foreshard.proxy.admin.sources import ConsoleSources
from foreshard.proxy.placement import max_over_mean
from foreshard.proxy.profiles import profile_keys

PLACED_KEY_BASE = 1 << 52
PLACED_KEY_SHIFT = 40
PROFILES_SQL = """
SELECT function, operation, calls, cpu_seconds, wall_seconds, queue_seconds, q_median, q_p95 FROM foreshard.profile"""
PROFILE_SUMMARY = ("function", "operation", "state", "calls", "cpu_total_s", "cpu_mean_ms", "q_median", "q_p95")
NO_TOTALS = (0, 0.0, 0.0, 0.0, None, None)  # no call yet
UNKNOWN_TOTALS = (None,) * 6  # the control database does not answer


async def show_shards(sources: ConsoleSources) -> ResultSet:
    """Shards with their share of buckets and load; loads are in seconds of a shard."""
    config, state = sources.config, sources.state
    _, owners = state.bucket_map()
    bucket_counts = Counter(int(owner) for owner in owners)
    active, idle = _count_backends(sources)
    rows: list[tuple[Cell, ...]] = []
    for index, (shard, load) in enumerate(zip(config.shards, state.shards(), strict=True)):
        url = urlsplit(shard.dsn)
        rows.append(
            (
                index,
                shard.name,
                url.hostname,
                url.port or 5432,
                url.path.lstrip("/") or None,
                shard.share,
                load.up,
                bucket_counts[index],
                int(load.rows),
                load.load,
                load.measured,
                max(load.placed - load.settled, 0.0),
                load.others_measured + load.others_pending,
                active[shard.name],
                idle[shard.name],
            )
        )
    return make_result(
        "index:bigint shard host port:bigint database weight:float up:bool buckets:bigint rows_placed:bigint "
        "load_s:float measured_s:float pending_s:float others_s:float sv_active:bigint sv_idle:bigint",
        rows,
    )


def _count_backends(sources: ConsoleSources) -> tuple[Counter[str], Counter[str]]:
    """Active and idle backends by shard name."""
    active: Counter[str] = Counter()
    idle: Counter[str] = Counter()
    for pool in sources.pools():
        active[pool.get("shard", "")] += pool.get("sv_active", 0)
        idle[pool.get("shard", "")] += pool.get("sv_idle", 0)
    return active, idle


async def show_buckets(sources: ConsoleSources) -> ResultSet:
    """How many buckets each shard has."""
    epoch, owners = sources.state.bucket_map()
    counts = Counter(int(owner) for owner in owners)
    rows = [
        (shard.name, counts[index], counts[index] / len(owners), epoch)
        for index, shard in enumerate(sources.config.shards)
    ]
    return make_result("shard buckets:bigint share:float epoch:bigint", rows)


async def show_all_buckets(sources: ConsoleSources) -> ResultSet:
    """Every bucket with its shard and the contiguous range of its placed keys."""
    epoch, owners = sources.state.bucket_map()
    names = [shard.name for shard in sources.config.shards]
    rows = []
    for bucket, owner in enumerate(owners):
        first_key = PLACED_KEY_BASE | bucket << PLACED_KEY_SHIFT
        rows.append((bucket, names[int(owner)], first_key, first_key + (1 << PLACED_KEY_SHIFT) - 1, epoch))
    return make_result("bucket:bigint shard first_key:bigint last_key:bigint epoch:bigint", rows)


async def show_placement(sources: ConsoleSources) -> ResultSet:
    """The policy and what it works with now."""
    placement, state = sources.config.placement, sources.state
    capacities = state.capacities()
    loads = state.loads()
    rows: list[tuple[Cell, ...]] = [
        ("policy", placement.policy, "how a shard is chosen for a new root row"),
        ("bound", show_value(placement.bound), "a shard takes light rows up to this multiple of its fair share"),
        ("candidates", str(CANDIDATE_COUNT), "buckets proposed for each row"),
        ("heavy_threshold_s", show_value(state.heavy_threshold), "rows predicted to cost this much are heavy"),
        ("rows_placed", str(int(sum(shard.rows for shard in state.shards()))), "root rows placed"),
        ("load_total_s", show_value(sum(loads)), "cost on all shards, in seconds of a shard"),
        ("cpu_s_per_s", show_value(capacities[0]), "CPU seconds a shard can give per second"),
        ("memory_bytes", show_value(capacities[1]), "memory a shard can give"),
        ("io_bytes_per_s", show_value(capacities[2]), "I/O bytes a shard can give per second"),
        ("network_bytes_per_s", show_value(capacities[3]), "network bytes a shard can give per second"),
        ("epoch", str(state.epoch), "version of the bucket map"),
        ("proxies", str(state.proxies), "how many place rows on these shards, this one included, as far as is heard"),
        (
            "others_load_total_s",
            show_value(sum(shard.others_measured + shard.others_pending for shard in state.shards())),
            "the others' part of load_total_s, as they told it last",
        ),
        (
            "others_heard_ago_s",
            show_value(round(time.time() - state.heard_s, 1)) if state.heard_s else None,
            "since loads were exchanged with other proxies; more than some seconds: the control database is down",
        ),
    ]
    rows += [
        (f"placed_{reason}", str(count), f"INSERTs placed since the router started: {REASONS[reason]}")
        for reason, count in sources.placements().items()
    ]
    return make_result("name value meaning", rows)


async def show_profiles(sources: ConsoleSources) -> ResultSet:
    """Each (function, operation): its calls, what one costs, and how well that was predicted."""
    every = await show_all_profiles(sources)
    places = [index for index, column in enumerate(every.columns) if column.name in PROFILE_SUMMARY]
    return ResultSet(
        tuple(every.columns[place] for place in places),
        tuple(tuple(row[place] for place in places) for row in every.rows),
    )


async def show_all_profiles(sources: ConsoleSources) -> ResultSet:
    """The model of each (function, operation) in force, and how well it predicted: totals from the control database."""
    answer = await sources.ask_control(PROFILES_SQL)
    missing = NO_TOTALS if answer.error is None else UNKNOWN_TOTALS
    kept = {(row[0], row[1]): row[2:] for row in answer.rows}
    rows = []
    for index, key in enumerate(profile_keys(sources.config)):
        profile = sources.state.profile(index)
        base, per_byte, per_value, per_row = (weight * 1e3 for weight in profile.weights[0])
        calls, cpu_s, wall_s, queue_s, q_median, q_p95 = kept.get((key.function, key.operation), missing)
        rows.append(
            (
                key.function,
                key.operation,
                "degraded" if profile.degraded else "measured" if profile.samples else "prior",
                *cells((calls, cpu_s, wall_s, queue_s, q_median, q_p95)),
                profile.means[0] * 1e3,
                base,
                per_byte * 1e3,
                per_value,
                per_row,
                profile.means[1],
                profile.means[2],
            )
        )
    return make_result(
        "function operation state calls:bigint cpu_total_s:float wall_total_s:float "
        "queue_total_s:float q_median:float q_p95:float cpu_mean_ms:float cpu_base_ms:float "
        "cpu_per_kilobyte_ms:float cpu_per_value_ms:float cpu_per_row_ms:float memory_mean_byte_s:float "
        "io_mean_bytes:float",
        rows,
    )


async def show_balance(sources: ConsoleSources) -> ResultSet:
    """Cost on the fullest shard over the mean, and on each: as measured, then per policy in its shadow ledger."""
    config = sources.config
    shards = sources.state.shards()
    weights = [shard.weight for shard in shards]
    columns = " ".join(f"{shard.name}_s:float" for shard in config.shards)
    found = [(config.placement.policy, "measured", [shard.measured for shard in shards])]
    found += [(policy, "shadow", costs) for policy, costs in sources.state.ledgers().items()]
    rows = [
        (policy, source, max_over_mean(costs, weights) if any(costs) else None, *costs)
        for policy, source, costs in found
    ]
    return make_result(f"policy source max_over_mean:float {columns}", rows)
