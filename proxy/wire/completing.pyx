"""What follows a statement before its client hears that it is done, in the same transaction.

A change of the schema is checked and completed by the code of `apply` (proxy/control/schema_change.py): the client's
transaction then plans by the catalog that it has made, and everybody does from its commit on. A write of a reference
table has run on the first shard; the others are given the rows that it changed there (proxy/control/outcome.py).

    finish_parts --run_script--> on_script: the client's CommandComplete, or the error
    COMMIT: the catalog becomes the router's      ROLLBACK, ROLLBACK TO: it is what it was
"""

from foreshard._core.statement_cache cimport StatementCache
from foreshard._core.template cimport (
    COMPLETE_FIRST,
    VERB_COMMIT,
    VERB_RELEASE,
    VERB_ROLLBACK,
    VERB_ROLLBACK_TO,
    VERB_SAVEPOINT,
    Template,
)
from foreshard.proxy.wire.freezing cimport Freezing
from foreshard.proxy.wire.session cimport WAIT_PARTS

from foreshard._core.errors import SqlError, not_built

cdef enum:
    OWN_ENTRIES_MAX = 256       # of the statement cache of a transaction that has changed the schema


cdef class Completing(Freezing):
    """The part of a frontend that completes statements."""

    def __cinit__(self):
        self.schema_marks = []

    cdef list completed_parts(self, Template template):
        """The backends that run the statement itself; all of the shards are linked."""
        if template.completion >= COMPLETE_FIRST:
            return [self.find_link(self.shards[0])]
        return [self.find_link(shard) for shard in self.shards]

    cdef int finish_parts(self, bint suspended) except -1:
        cdef Template template = self.completing
        self.completing = None
        if template is None or self.parts_failed:
            return Freezing.finish_parts(self, suspended)
        self.is_suspended = suspended
        return self.run_script(self.hub.services.complete(template, self.schema))

    cdef int run_alone(self, Template template, bytes text) except -1:
        """A statement that no transaction block takes: on one shard after the other. True: the message has to wait."""
        if self.explicit:
            raise SqlError("25001", f"{template.name} CONCURRENTLY cannot run inside a transaction block")
        if self.is_unsynced():
            raise not_built(f"{template.name} CONCURRENTLY inside a pipeline", "Sync first.")
        if self.wait_until_drained() or not self.attach_all(list(range(self.hub.shard_count)), False):
            return 1
        self.alone = template
        self.alters = True
        self.run_script(self.hub.services.complete_alone(text))
        return 0

    cdef int finish_alone(self, object result, object failure) except -1:
        """Every shard has done it, or one of them has failed."""
        cdef bytes tag = self.alone.name.encode()
        self.alone = None
        if failure is None:
            self.hub.services.follow_schema(result)
            self.push_complete(tag)
        else:
            self.push_bytes(failure.encode())
            self.skipping = not self.simple
        if self.simple:
            self.push_ready()
        self.release_links()
        return self.resume()

    cdef int start_commit(self, Template template, list targets, bint is_quiet) except -1:
        """Before another catalog is committed, nobody plans by the old one any more (control/schema_barrier)."""
        if self.schema is None or self.is_announced or self.hub.shard_count == 1:
            return Freezing.start_commit(self, template, targets, is_quiet)
        self.verb = template
        self.committing = (template, targets, is_quiet)
        return self.run_script(self.hub.services.announce_schema(self.schema))

    cdef int go_on_committing(self, object failure) except -1:
        """Every router has given way, or one of them does not."""
        cdef Template template
        template, targets, is_quiet = self.committing
        self.committing = None
        self.is_quiet = is_quiet
        self.participants = []
        try:
            if failure is not None:
                raise failure
            self.is_announced = True
            return self.start_commit(template, targets, is_quiet)
        except SqlError as error:
            self.push_bytes(error.encode())
            return self.undo()

    cdef int on_script(self, object result, object failure) except -1:
        if self.committing is not None:
            return self.go_on_committing(failure)
        if self.alone is not None:
            return self.finish_alone(result, failure)
        if failure is not None:
            self.parts_failed = True
            self.push_bytes(failure.encode())
        elif result is not None:
            self.take_schema(result)
        self.waiting = WAIT_PARTS
        return Freezing.finish_parts(self, self.is_suspended)

    cdef int take_schema(self, object schema) except -1:
        """From now on this session plans by a catalog of its own; None: by everybody's."""
        self.schema = schema
        self.is_announced = False
        self.cache = self.hub.cache
        if schema is not None:
            self.cache = StatementCache(None, OWN_ENTRIES_MAX)
            self.hub.services.plan_by(self.cache, schema)
        return 0

    cdef int settle_verb(self, Template template) except -1:
        cdef int verb = template.verb
        if self.schema is None and not self.schema_marks:
            return Freezing.settle_verb(self, template)
        schema = self.schema
        if verb == VERB_RELEASE:
            names = [name for name, _, _ in self.history]
            at = len(names) - 1 - names[::-1].index(template.name) if template.name in names else len(names)
            self.schema_marks = [mark for mark in self.schema_marks if mark[0] < at]
        is_done = verb == VERB_COMMIT and not self.failed and not self.command_failed
        Freezing.settle_verb(self, template)
        if verb == VERB_SAVEPOINT:
            self.schema_marks.append((len(self.history) - 1, schema))
        elif verb == VERB_ROLLBACK_TO:
            self.restore_schema()
        elif verb == VERB_COMMIT or verb == VERB_ROLLBACK:
            self.schema_marks.clear()
            self.take_schema(None)
            if is_done and schema is not None:
                self.hub.services.follow_schema(schema)
        return 0

    cdef int restore_schema(self) except -1:
        """After ROLLBACK TO: the catalog as it was at that savepoint, the last one that is left."""
        at = len(self.history) - 1
        found = [schema for place, schema in self.schema_marks if place == at]
        self.schema_marks = [mark for mark in self.schema_marks if mark[0] <= at]
        return self.take_schema(found[-1] if found else None)

    cdef int release_links(self) except -1:
        if self.schema is not None:         # its transaction ended otherwise than by a command
            self.schema_marks.clear()
            self.take_schema(None)
        return Freezing.release_links(self)

    cdef int abandon(self) except -1:
        self.drop_script()
        if self.schema is not None:         # whether its transaction is committed may not be known
            self.hub.services.doubt_schema()
        return Freezing.abandon(self)
