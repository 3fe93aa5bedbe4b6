"""Loops around cached route decisions, for measuring them as _core/loops measures the other kernels.

Each call routes texts in turn, as a router would that gets them from many clients: look the text up in the cache,
literals lifted, then read the key and find its bucket, or the features of a row to be placed.
"""

from libc.stdint cimport uint64_t

from foreshard._core.lexer cimport Lexer
from foreshard._core.statement_cache cimport StatementCache
from foreshard._core.template cimport ROUTE_KEYED, ROUTE_PLACE, Buckets, Template
from foreshard._core.values cimport VALUE_BINARY, VALUE_TEXT, Values


def loop_lift(list texts, count: int) -> int:
    """Lift the literals out of one text after the other."""
    cdef Lexer lexer = Lexer()
    cdef Values literals = Values()
    cdef uint64_t total = 0
    cdef Py_ssize_t i, end = count, size = len(texts)
    cdef bytes text
    for i in range(end):
        text = <bytes> texts[i % size]
        lexer.scan(<const char*> text, len(text), literals)
        total += lexer.key_size + literals.count
    return total


def loop_route(StatementCache cache, list texts, list params, count: int) -> int:
    """Route one text after the other; `params` are bytes, of 8 in binary format, else text."""
    cdef Values literals = Values()
    cdef Values bound = Values()
    cdef Buckets found = Buckets()
    cdef Template template
    cdef double features[4]
    cdef uint64_t total = 0
    cdef Py_ssize_t i, end = count, size = len(texts)
    cdef bytes text
    cdef bytes param
    for param in params:
        bound.append(<const char*> param, len(param), VALUE_BINARY if len(param) == 8 else VALUE_TEXT)
    for i in range(end):
        text = <bytes> texts[i % size]
        template = cache.get(<const char*> text, len(text), literals)
        if template.kind == ROUTE_KEYED:
            template.locate(literals, bound, found)
            total += found.items[0]
        elif template.kind == ROUTE_PLACE:
            template.read_features(literals, bound, features)
            total += <uint64_t> features[1]
    return total


def loop_bound(StatementCache cache, bytes text, list params, count: int) -> int:
    """Route one prepared statement: its template is at hand, only the parameters are read."""
    cdef Values literals = Values()
    cdef Values bound = Values()
    cdef Buckets found = Buckets()
    cdef Template template = cache.get(<const char*> text, len(text), literals)
    cdef uint64_t total = 0
    cdef Py_ssize_t end = count
    cdef bytes param
    for param in params:
        bound.append(<const char*> param, len(param), VALUE_BINARY if len(param) == 8 else VALUE_TEXT)
    for _ in range(end):
        template.locate(literals, bound, found)
        total += found.items[0]
    return total
