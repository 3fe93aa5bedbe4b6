from foreshard._core.statement_cache import StatementCache
from foreshard._core.template import Template

class Statement:
    id: int
    body: bytes
    server_name: bytes
    template: Template
    is_validated: bool
    def __init__(self, id: int, body: bytes, query_size: int, cache: StatementCache) -> None: ...
