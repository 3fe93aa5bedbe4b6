from foreshard._core.buffer cimport Buffer


cdef bytes parts_text(Buffer rows, tuple types)
