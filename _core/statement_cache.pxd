from libc.stdint cimport uint64_t

from foreshard._core.lexer cimport Lexer
from foreshard._core.template cimport Template
from foreshard._core.values cimport Values


cdef struct Entry:
    uint64_t hash
    char* key               # owned
    Py_ssize_t size
    void* template          # an owned reference to a Template; NULL: texts with this key are cached by exact text
    int next                # in the chain of its slot; -1 ends it
    bint used               # since the clock's hand last passed


cdef class StatementCache:
    cdef object planner         # bytes -> Template
    cdef Lexer lexer
    cdef Entry* entries
    cdef int* slots             # index of the first entry of each chain; -1 for none
    cdef int slot_mask
    cdef int count
    cdef int entries_max
    cdef int hand               # the clock's
    cdef Py_ssize_t bytes_max
    cdef uint64_t seed
    cdef readonly Py_ssize_t size_bytes         # of the keys held
    cdef readonly unsigned long long hit_count
    cdef readonly unsigned long long miss_count
    cdef readonly unsigned long long eviction_count
    cdef readonly int catalog_version

    # The template of a text, and its literals in `literals`: borrowed from `sql`, in order.
    cdef Template get(self, const char* sql, Py_ssize_t size, Values literals)
    cdef int find(self, const char* key, Py_ssize_t size, uint64_t hash) noexcept
    cdef Template plan(self, const char* sql, Py_ssize_t size, uint64_t hash, bint odd, bint known)
    cdef int put(self, const char* key, Py_ssize_t size, uint64_t hash, Template template) except -1
    cdef void evict(self) noexcept
    cdef void unlink(self, int index) noexcept
    cdef void clear(self) noexcept
    cdef uint64_t hash_of(self, const char* data, Py_ssize_t size, bint exact) noexcept
