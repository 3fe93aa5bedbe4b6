"""A prepared statement as the router knows it: text and parameter types, shared by all clients that have the same."""

cimport cython

from foreshard._core.statement_cache cimport StatementCache
from foreshard._core.values cimport Values


@cython.final
cdef class Statement:
    """Made at the first Parse of its text and types; kept by the hub while it is among the recently used."""

    def __init__(self, object id, bytes body, Py_ssize_t query_size, StatementCache cache):
        self.id = id
        self.body = body
        self.query_size = query_size
        self.server_name = b"foreshard_%d" % id
        self.literals = Values()
        self.template = cache.get(<const char*> body, query_size, self.literals)
        self.is_validated = False
