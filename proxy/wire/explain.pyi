from typing import Any

from foreshard._core.template import Template
from foreshard._core.values import Values
from foreshard.proxy.wire.pool import Hub

def explain_route(
    hub: Hub,
    template: Template,
    literals: Values,
    params: Values,
    only_shard: int,
    claims: dict[int, int] | None,
    homes: dict[int, int] | None,
) -> dict[str, Any]: ...
