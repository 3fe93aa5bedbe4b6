"""The configuration as values: one frozen struct per section, units last in names."""

from __future__ import annotations

from pathlib import Path

import msgspec


class ShardConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One shard: a PostgreSQL database. The order in the file is the shard's index and never changes."""

    name: str
    dsn: str
    weight: float = 1.0
    is_draining: bool = False  # `foreshard shards drain`: its buckets move away, and nothing comes

    @property
    def share(self) -> float:
        """What the shard is to take relative to others."""
        return 0.0 if self.is_draining else self.weight


class EmbeddedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shards that Foreshard itself starts, each a PostgreSQL instance below `data`."""

    shards: int = 3
    data: Path = Path("./data")


Columns = str | tuple[str, ...] | None  # one column, or several in order


def as_columns(given: Columns) -> tuple[str, ...]:
    """The columns, however many were named."""
    return (given,) if isinstance(given, str) else given or ()


class TableConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A declared table. Sharded root: key only. Child: key, parent, via. Reference: reference only."""

    name: str
    key: Columns = None
    parent: str | None = None
    via: Columns = None
    reference: bool = False
    unique: tuple[tuple[str, ...], ...] = ()  # columns whose values are unique over all shards
    placement: str = "home"  # where rows live whose keys clients give: "home", or by "cost"

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the key, in the order they were given."""
        return as_columns(self.key)

    @property
    def via_columns(self) -> tuple[str, ...]:
        """The columns that hold the parent's key; empty when the foreign key has to tell."""
        return as_columns(self.via)


class ProfilePrior(msgspec.Struct, frozen=True, kw_only=True):
    """Expected cost of one call until it has been measured; None where nothing is known."""

    cpu_s: float | None = None
    memory_byte_s: float | None = None
    io_bytes: float | None = None
    network_bytes: float | None = None


class TriggerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A registered trigger function."""

    name: str
    table: str
    on: tuple[str, ...]  # of "insert", "update", "delete"
    function: str  # "module:callable"
    columns: tuple[str, ...] | None = None  # for update: fire only when one of these changed
    timeout_s: float = 30.0
    memory_bytes_max: int | None = None
    attempts_max: int = 5
    backoff_s: float = 0.5  # before the first retry; doubles each time
    profile: ProfilePrior = ProfilePrior()


class PlacementConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a shard is chosen for a new root row."""

    policy: str = "bounded"  # bounded, key-hash, cost-hash, two-choices, least-loaded
    bound: float = 1.05
    # What one shard can give per second: a cost vector is divided by these, the largest quotient is its scalar.
    cpu_s_per_s: float = 1.0
    memory_bytes: float = 1e9
    io_bytes_per_s: float = 200e6
    network_bytes_per_s: float = 100e6


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Backends per shard."""

    size: int = 20  # most transactions that begin on a shard at once; those of other shards may join
    wait_timeout_s: float = 30.0  # a client waits this long for a backend, then hears 53300
    idle_timeout_s: float = 600.0  # an idle backend is closed after this
    connect_timeout_s: float = 5.0


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a client may send, and how long things may take."""

    clients_max: int = 1000
    startup_bytes_max: int = 10_000
    message_bytes_max: int = 256 * 1024 * 1024
    startup_timeout_s: float = 10.0
    shadow_bytes_max: int = 64_000_000  # that the query node takes of a transaction's own tables for one statement
    commit_timeout_s: float = 3.0  # of a commit over several shards: recovery ends one that takes longer
    statement_cache_entries_max: int = 10_000


class WorkersConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Local worker processes."""

    per_shard: int = 1
    batch_events_max: int = 32
    poll_interval_s: float = 1.0
    preload: tuple[str, ...] = ()


class RebalanceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """When buckets move by themselves, and how much at a time."""

    automatic: bool = True  # False: only what an operator asks for
    start: float = 1.15  # a shard with more than so many times its share of the demand is relieved
    goal: float = 1.05  # until none has more than this
    rows_per_minute: float = 0.02  # share of all rows that moves may carry in a minute
    cooldown_s: float = 600.0  # a bucket that was moved stays for so long
    bytes_per_s: float = 50e6  # that moves carry at most, whoever has ordered them


class QueryNodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The database whose tables are foreign tables over all shards."""

    is_on: bool = True  # False: `query_node: off`
    database: str | None = None  # on the first shard's server; None: that shard's database + "_foreshard_query"
    dsn: str | None = None  # a database on another server; it is made there


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration. `shards` is filled for embedded deployments too, once their ports are known."""

    path: Path  # the file it came from; relative paths in it are relative to its folder
    listen_host: str = "127.0.0.1"
    listen_port: int = 6432
    shards: tuple[ShardConfig, ...] = ()
    embedded: EmbeddedConfig | None = None
    control: str | None = None  # DSN; None: the first shard's database
    run_directory: Path = Path("./run")  # shared state, sockets, pid file
    schema: Path | None = None  # SQL file that `apply` runs on every shard before anything else
    functions_path: Path | None = None  # folder put on sys.path of workers; default: the file's folder
    tables: tuple[TableConfig, ...] = ()
    triggers: tuple[TriggerConfig, ...] = ()
    placement: PlacementConfig = PlacementConfig()
    pool: PoolConfig = PoolConfig()
    limits: LimitsConfig = LimitsConfig()
    workers: WorkersConfig = WorkersConfig()
    rebalance: RebalanceConfig = RebalanceConfig()
    query_node: QueryNodeConfig | None = None  # None: one is made where the first shard's user may make it
