"""The closing assertion of tests that hurt a deployment: `foreshard verify` finds nothing wrong with it."""

from __future__ import annotations

from pathlib import Path

from foreshard.proxy.config import Config, load_config
from foreshard.proxy.control.shard_list import latest
from foreshard.proxy.control.verify import EVERYTHING, Options, run_verify
from foreshard.proxy.control.verify_findings import Verdict, verdict_lines
from foreshard.proxy.embedded import running_shards


def verdict_of(configuration: Path | Config, options: Options = EVERYTHING) -> Verdict:
    """What `foreshard verify` says of the deployment."""
    config = configuration if isinstance(configuration, Config) else load_config(configuration)
    with running_shards(config) as ready:
        return run_verify(latest(ready), options)


def assert_verified(configuration: Path | Config) -> None:
    """Fails with the findings when there are any."""
    verdict = verdict_of(configuration)
    assert verdict.is_clean, "\n".join(verdict_lines(verdict))
