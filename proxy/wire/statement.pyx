"""A prepared statement as the router knows it: text and parameter types, shared by all clients that have the same."""

cimport cython

from foreshard._core.statement_cache cimport StatementCache
from foreshard._core.template cimport ROUTE_REFUSE, Template
from foreshard._core.values cimport VALUE_BINARY, VALUE_TEXT, Values


cdef enum:
    TEXT_OID = 25
    USER_OID_MIN = 16384        # PostgreSQL's FirstNormalObjectId


cdef list parameter_types(bytes declared):
    """The type oids that a Parse message declares: a count, then that many."""
    return [int.from_bytes(declared[at:at + 4], "big") for at in range(2, len(declared) - 3, 4)]


@cython.final
cdef class Statement:
    """Made at the first Parse of its text and types; kept by the hub while it is among the recently used."""

    def __init__(self, object id, bytes body, Py_ssize_t query_size, StatementCache cache):
        self.id = id
        self.body = body
        self.query_size = query_size
        self.server_name = b"foreshard_%d" % id
        self.is_validated = False
        self.plan(cache)

    cdef int plan(self, StatementCache cache) except -1:
        """Plan the text by the catalog of the cache."""
        cdef Values literals = Values()
        self.template = cache.get(<const char*> self.body, self.query_size, literals)
        self.literals = literals
        self.version = cache.catalog_version
        self.merged = self.undated = None
        self.text_parameters = ()
        refusal = None
        if self.template.keys or self.template.merge is not None:
            declared = parameter_types(self.body[self.query_size + 1:])
            refusal = self.template.check_types(declared)
            self.text_parameters = self.template.text_parameters(declared)
        if refusal is not None:
            self.template = Template(ROUTE_REFUSE, refusal=refusal)
        return 0

    cdef Statement with_text(self, object id, bytes text):
        """A statement of our own that is run in this one's place: other text, same parameters and template."""
        cdef Statement made = Statement.__new__(Statement)
        made.id = id
        made.body = text + self.body[self.query_size:]
        made.query_size = len(text)
        made.server_name = b"foreshard_%d" % id
        made.literals = self.literals
        made.template = self.template
        made.text_parameters = self.text_parameters
        made.version = self.version
        return made

    cdef int read_texts(self, Values params) except -1:
        """A text that is cast to a key's type is a text in binary format, too: its bytes are no number."""
        for index in self.text_parameters:
            if index < params.count and params.items[<Py_ssize_t> index].format == VALUE_BINARY:
                params.items[<Py_ssize_t> index].format = VALUE_TEXT
        return 0

    cdef bytes describe_parameters(self):
        """The ParameterDescription of a statement that Foreshard answers itself: as declared, else as planned."""
        cdef list declared = parameter_types(self.body[self.query_size + 1:])
        cdef tuple planned = self.template.parameters
        types = [
            declared[index] if index < len(declared) and declared[index] else planned[index]
            if index < len(planned) else TEXT_OID
            for index in range(max(len(declared), len(planned)))
        ]
        body = len(types).to_bytes(2, "big") + b"".join([oid.to_bytes(4, "big") for oid in types])
        return b"t" + (len(body) + 4).to_bytes(4, "big") + body

    cdef bytes body_with(self, dict oids):
        """The body with the parameters' types named as the query node names them; `oids` translates the other way."""
        declared = parameter_types(self.body[self.query_size + 1:])
        if not declared or max(declared) < USER_OID_MIN:
            return self.body
        theirs = {ours: oid for oid, ours in oids.items()}
        types = b"".join([(<object> theirs.get(oid, oid)).to_bytes(4, "big") for oid in declared])
        return self.body[:len(self.body) - len(types)] + types
