"""A portal: what a Bind made, on one shard, on several, or answered by Foreshard itself."""

cimport cython


@cython.final
cdef class Portal:
    """What a Bind made. The unnamed portal's object is used again for each Bind."""
