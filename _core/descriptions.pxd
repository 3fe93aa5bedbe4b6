cdef int translate_oids(char type, char* body, Py_ssize_t size, dict oids) except -1
