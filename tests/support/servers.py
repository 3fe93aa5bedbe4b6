"""A place to connect to, direct or through the proxy."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tests.support.raw import RawConnection


class Server(NamedTuple):
    """Where PostgreSQL, or what speaks like it, listens, and who to be there."""

    host: str
    port: int
    user: str
    database: str

    @classmethod
    def of_dsn(cls, dsn: str) -> Server:
        parts = urlsplit(dsn)
        return cls(parts.hostname or "127.0.0.1", parts.port or 5432, unquote(parts.username or ""), parts.path[1:])

    @property
    def dsn(self) -> str:
        return f"postgresql://{self.user}@{self.host}:{self.port}/{self.database}"

    def open(self) -> RawConnection:
        """A connection on which nothing has been said."""
        return RawConnection(self.host, self.port)

    def connect(self, **parameters: str) -> RawConnection:
        """A connection that is ready for queries."""
        connection = self.open()
        try:
            answer = connection.start(self.user, self.database, **parameters)
            assert answer
            assert answer[-1].kind == b"Z", answer
        except BaseException:
            connection.close()
            raise
        return connection

    def run(self, *statements: str) -> None:
        """Simple queries, each in a transaction of its own, that must succeed."""
        with self.connect() as connection:
            for statement in statements:
                connection.rows(statement)


class Pair(NamedTuple):
    """One database seen twice: without and with the proxy."""

    direct: Server
    proxied: Server
