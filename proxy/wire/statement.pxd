from foreshard._core.statement_cache cimport StatementCache
from foreshard._core.template cimport Template
from foreshard._core.values cimport Values


cdef class Statement:
    cdef readonly object id             # int, unique in this router
    cdef readonly bytes body            # query, zero, parameter types: a Parse message after the name
    cdef Py_ssize_t query_size
    cdef readonly bytes server_name     # what backends know it by
    cdef readonly Template template
    cdef bytes body_with(self, dict oids)
    cdef tuple text_parameters          # indexes of those that are texts in whatever format
    cdef Values literals                # of the query text, which `body` holds
    cdef Statement merged               # with the text that the shards of a merge run; None: not made yet
    cdef Statement undated              # the same for sessions whose dates are not ISO
    cdef bint has_merged            # of such a statement: the shards have answered it before
    cdef public bint is_validated       # some backend has parsed it without error

    cdef int version                    # of the catalog that the template was planned by

    cdef int plan(self, StatementCache cache) except -1
    cdef int read_texts(self, Values params) except -1
    cdef Statement with_text(self, object id, bytes text)
    cdef bytes describe_parameters(self)
