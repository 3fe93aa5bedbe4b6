"""Configuration: the frozen structs every process works from, and how they are read from YAML."""

from foreshard.proxy.config.crosscheck import qualified
from foreshard.proxy.config.load import load_config
from foreshard.proxy.config.model import (
    Config,
    EmbeddedConfig,
    LimitsConfig,
    PlacementConfig,
    PoolConfig,
    ProfilePrior,
    QueryNodeConfig,
    RebalanceConfig,
    ShardConfig,
    TableConfig,
    TriggerConfig,
    WorkersConfig,
)

__all__ = [
    "Config",
    "EmbeddedConfig",
    "LimitsConfig",
    "PlacementConfig",
    "PoolConfig",
    "ProfilePrior",
    "QueryNodeConfig",
    "RebalanceConfig",
    "ShardConfig",
    "TableConfig",
    "TriggerConfig",
    "WorkersConfig",
    "load_config",
    "qualified",
]
