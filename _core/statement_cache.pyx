"""Statement text to Template, so that no statement is parsed twice, whatever literals it is written with.

A text is looked up by its key (the text with its literals lifted out, see _core/lexer). Where a plan depended on the
value of a literal, the key's entry has no template and the text itself is looked up. Both kinds live in one table.

1. At most `entries_max` entries and `bytes_max` bytes of keys; the clock evicts what was not used since it last passed.
2. A hit makes no Python object and copies nothing.
3. A Template that was handed out stays valid (references are counted) when its entry goes.
4. Texts larger than KEY_BYTES_MAX once their literals are lifted, and odd texts, are planned each time.
"""

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from foreshard._core.lexer cimport Lexer
from foreshard._core.template cimport Template
from foreshard._core.values cimport Values

cdef Py_ssize_t KEY_BYTES_MAX = 64 * 1024   # chosen, not measured: longer texts are rare and cost memory
cdef uint64_t PRIME_1 = 0x9E3779B97F4A7C15
cdef uint64_t PRIME_2 = 0xC2B2AE3D27D4EB4F


cdef inline uint64_t mix(uint64_t state, uint64_t word) noexcept:
    """One round: multiply, fold the high half into the low one."""
    state = (state ^ word) * PRIME_1
    return state ^ (state >> 29)


@cython.final
cdef class StatementCache:
    """Owns its entries. One per router; `invalidate` when the catalog changes."""

    def __cinit__(self, object planner, int entries_max=10_000, Py_ssize_t bytes_max=32 * 1024 * 1024, seed=0):
        cdef int size = 16
        if entries_max < 2:
            raise ValueError("a statement cache holds at least two entries")
        while size < entries_max * 2:
            size *= 2
        self.planner = planner
        self.lexer = Lexer()
        self.entries_max = entries_max
        self.bytes_max = bytes_max
        self.seed = <uint64_t> (seed & 0xFFFFFFFFFFFFFFFF)
        self.slot_mask = size - 1
        self.entries = <Entry*> calloc(entries_max, sizeof(Entry))
        self.slots = <int*> malloc(size * sizeof(int))
        if self.entries == NULL or self.slots == NULL:
            raise MemoryError()
        for index in range(size):
            self.slots[index] = -1

    def __dealloc__(self):
        if self.entries != NULL and self.slots != NULL:
            self.clear()
        free(self.entries)
        free(self.slots)

    cdef Template get(self, const char* sql, Py_ssize_t size, Values literals):
        """The template of a text; what the planner raises when it is not cached and cannot be planned."""
        cdef bint odd = self.lexer.scan(sql, size, literals)
        cdef uint64_t key_hash = self.hash_of(self.lexer.key, self.lexer.key_size, False)
        cdef int index = -1 if odd else self.find(self.lexer.key, self.lexer.key_size, key_hash)
        cdef bint known = index >= 0
        if known:
            self.entries[index].used = True
            if self.entries[index].template == NULL:
                index = self.find(sql, size, self.hash_of(sql, size, True))
                if index < 0:
                    return self.plan(sql, size, key_hash, odd, known)
                self.entries[index].used = True
            self.hit_count += 1
            return <Template> <PyObject*> self.entries[index].template
        return self.plan(sql, size, key_hash, odd, known)

    cdef int find(self, const char* key, Py_ssize_t size, uint64_t hash) noexcept:
        """Index of an entry, -1 when there is none."""
        cdef int index = self.slots[hash & <uint64_t> self.slot_mask]
        cdef Entry* entry
        while index >= 0:
            entry = &self.entries[index]
            if entry.hash == hash and entry.size == size and memcmp(entry.key, key, size) == 0:
                return index
            index = entry.next
        return -1

    cdef Template plan(self, const char* sql, Py_ssize_t size, uint64_t hash, bint odd, bint known):
        """Plan a text and keep what was learnt. `hash` is of its key; `known`: its key says to look at the text."""
        cdef Template template
        self.miss_count += 1
        template = self.planner(sql[:size])
        if odd:
            return template
        if not template.is_exact or self.lexer.literal_count == 0:
            if not known:
                self.put(self.lexer.key, self.lexer.key_size, hash, template)
            return template
        if not known:
            self.put(self.lexer.key, self.lexer.key_size, hash, None)
        self.put(sql, size, self.hash_of(sql, size, True), template)
        return template

    cdef int put(self, const char* key, Py_ssize_t size, uint64_t hash, Template template) except -1:
        """Add an entry, evicting others as invariant 1 asks."""
        cdef Entry* entry
        cdef int* slot = &self.slots[hash & <uint64_t> self.slot_mask]
        cdef int index
        cdef char* owned
        if size > KEY_BYTES_MAX or size > self.bytes_max:
            return 0
        while self.count and (self.count == self.entries_max or self.size_bytes + size > self.bytes_max):
            self.evict()
        owned = <char*> malloc(size if size else 1)
        if owned == NULL:
            raise MemoryError()
        memcpy(owned, key, size)
        index = 0
        while self.entries[self.hand].key != NULL and index < self.entries_max:
            self.hand = (self.hand + 1) % self.entries_max
            index += 1
        entry = &self.entries[self.hand]
        entry.hash = hash
        entry.key = owned
        entry.size = size
        entry.template = NULL
        if template is not None:
            Py_INCREF(template)
            entry.template = <PyObject*> template
        entry.used = False      # a full turn of the hand to be used again in
        entry.next = slot[0]
        slot[0] = self.hand
        self.hand = (self.hand + 1) % self.entries_max
        self.count += 1
        self.size_bytes += size
        return 0

    cdef void evict(self) noexcept:
        """Move the hand to an entry that was not used since it last passed, and drop that one."""
        cdef Entry* entry
        while True:
            entry = &self.entries[self.hand]
            if entry.key != NULL:
                if not entry.used:
                    self.unlink(self.hand)
                    self.eviction_count += 1
                    return
                entry.used = False
            self.hand = (self.hand + 1) % self.entries_max

    cdef void unlink(self, int index) noexcept:
        """Take an entry out of its chain and free what it owns."""
        cdef Entry* entry = &self.entries[index]
        cdef int* link = &self.slots[entry.hash & <uint64_t> self.slot_mask]
        cdef void* template = entry.template
        while link[0] != index:
            link = &self.entries[link[0]].next
        link[0] = entry.next
        free(entry.key)
        self.size_bytes -= entry.size
        self.count -= 1
        entry.key = NULL
        entry.template = NULL
        if template != NULL:
            Py_DECREF(<object> <PyObject*> template)

    cdef void clear(self) noexcept:
        """Drop every entry."""
        cdef int index
        for index in range(self.entries_max):
            if self.entries[index].key != NULL:
                self.unlink(index)

    cdef uint64_t hash_of(self, const char* data, Py_ssize_t size, bint exact) noexcept:
        """A seeded hash of bytes, eight at a time. Not for secrets: the seed keeps chains short on hostile texts."""
        cdef uint64_t state = self.seed ^ (<uint64_t> size * PRIME_2) ^ (PRIME_1 if exact else 0)
        cdef uint64_t word
        while size >= 8:
            memcpy(&word, data, 8)
            state = mix(state, word)
            data += 8
            size -= 8
        if size:
            word = 0
            memcpy(&word, data, size)
            state = mix(state, word)
        state = mix(state, PRIME_2)
        return state ^ (state >> 32)

    def __len__(self) -> int:
        return self.count

    def lookup(self, bytes sql not None) -> Template:
        """`get` for callers without a buffer of their own."""
        return self.get(sql, len(sql), Values())

    def invalidate(self, object planner, int catalog_version) -> None:
        """Forget every template and plan with `planner`, made for that version of the catalog, from now on."""
        self.clear()
        self.planner = planner
        self.catalog_version = catalog_version
