"""Arrays and JSON arrays that shards have made of a group's values, put together.

An element stays as the shard wrote it: in text what stands between two commas, in binary its length and bytes. Only
one-dimensional arrays of scalars with commas between them are planned; another form is an error. A list that is in an
order comes with lists of what it is sorted by, each of them in that order, too, and is merged by them.
"""

from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr

from foreshard._core.combine cimport odd_value
from foreshard._core.sort_keys cimport SortKey, compare_keys, decode_key, sort_class

cdef enum:
    HEADER_BYTES = 20           # of a binary array of one dimension

cdef dict ARRAY_OF = {
    16: 1000, 17: 1001, 20: 1016, 21: 1005, 23: 1007, 25: 1009, 26: 1028, 700: 1021, 701: 1022, 1042: 1014, 1043: 1015,
    1082: 1182, 1083: 1183, 1114: 1115, 1184: 1185, 1700: 1231, 2950: 2951,
}


cdef bytes join_arrays(list parts, bint binary, uint32_t oid):
    """One array after the other."""
    cdef bytes part
    if len(parts) == 1:
        return parts[0]
    for part in parts:
        check_array(part, binary, oid)
    if not binary:
        return b"{" + b",".join([part[1:-1] for part in parts]) + b"}"
    count = sum([int.from_bytes(part[12:16], "big") for part in parts])
    return array_header(parts, count) + b"".join([part[HEADER_BYTES:] for part in parts])


cdef bytes join_json(list parts, bint binary, uint32_t oid):
    """One JSON array after the other; binary jsonb has its version in front."""
    cdef bytes part, head = b""
    if binary and parts[0][:1] != b"[":
        head = parts[0][:1]
    start = len(head) + 1
    for part in parts:
        if part[start - 1:start] != b"[" or part[-1:] != b"]":
            raise odd_value(oid)
    inside = [part[start:-1] for part in parts]
    return head + b"[" + b", ".join([part for part in inside if part]) + b"]"


cdef int check_array(bytes part, bint binary, uint32_t oid) except -1:
    """SqlError for what is no array of one dimension that starts at 1."""
    if binary:
        if len(part) < HEADER_BYTES or part[:4] != b"\0\0\0\1" or part[16:20] != b"\0\0\0\1":
            raise odd_value(oid)
    elif part[:1] != b"{" or part[-1:] != b"}":
        raise odd_value(oid)
    return 0


cdef bytes array_header(list parts, Py_ssize_t count):
    """The head of a binary array: whether one of the parts has NULLs is in its flags."""
    cdef bytes flags = b"\0\0\0\1" if any([part[4:8] != b"\0\0\0\0" for part in parts]) else b"\0\0\0\0"
    return b"\0\0\0\1" + flags + parts[0][8:12] + count.to_bytes(4, "big") + b"\0\0\0\1"


cdef list split_array(bytes part, bint binary, uint32_t oid):
    """The elements as they are written."""
    cdef const char* data = part
    cdef Py_ssize_t at = HEADER_BYTES if binary else 1, start, size = len(part)
    cdef list found = []
    check_array(part, binary, oid)
    while at < size:
        start = at
        if binary:
            length = int.from_bytes(part[at:at + 4], "big", signed=True)
            at += 4 + max(<Py_ssize_t> length, 0)
            if at > size:
                raise odd_value(oid)
            found.append(part[start:at])
            continue
        if data[at] == b'"':
            at += 1
            while at < size and data[at] != b'"':
                at += 2 if data[at] == b"\\" else 1
        while at < size - 1 and data[at] != b",":
            at += 1
        found.append(part[start:at])
        at += 1
    return found


cdef bytes value_of(bytes element, bint binary):
    """An element's value; None for NULL."""
    if binary:
        return None if element[:4] == b"\xff\xff\xff\xff" else element[4:]
    if element == b"NULL":
        return None
    if element[:1] != b'"':
        return element
    if memchr(<const char*> element, b"\\", len(element)) == NULL:
        return element[1:-1]
    return element[1:-1].replace(b"\\\\", b"\0").replace(b"\\", b"").replace(b"\0", b"\\")


cdef bytes merge_arrays(list parts, bint binary, uint32_t oid, bytes delimiter, list keys):
    """Arrays in the order of `keys`: (parts, binary, oid of them, oid of a value, descending, nulls first). With a
    delimiter the answer is a string of the values that are not NULL, else an array.
    """
    cdef list lists = [split_array(part, binary, oid) for part in parts]
    cdef list chosen = in_order(lists, keys)
    if delimiter is None:
        if binary:
            return array_header(parts, len(chosen)) + b"".join(chosen)
        return b"{" + b",".join(chosen) + b"}"
    values = [value_of(element, binary) for element in chosen]
    strings = [value for value in values if value is not None]
    return delimiter.join(strings) if strings else None


cdef list in_order(list lists, list keys):
    """The elements of sorted lists, merged."""
    cdef int width = <int> len(keys), index, part, best, count = <int> len(lists)
    cdef Py_ssize_t total = sum([len(elements) for elements in lists]), base = 0
    cdef SortKey* read = <SortKey*> malloc(max(total * width, 1) * sizeof(SortKey))
    cdef list kept = [], chosen = []
    cdef list at = [0] * count, ends = [], values
    if read == NULL:
        raise MemoryError()
    try:
        for part in range(count):
            at[part] = base
            for index in range(width):
                values = key_values(keys[index], part, len(lists[part]))
                kept.append(values)
                read_keys(values, keys[index], read + base * width + index, width)
            base += len(lists[part])
            ends.append(base)
        starts = list(at)
        for _ in range(total):
            best = -1
            for part in range(count):
                if at[part] < ends[part] and (best < 0 or compare_rows(
                        read + <Py_ssize_t> at[part] * width, read + <Py_ssize_t> at[best] * width, keys) < 0):
                    best = part
            chosen.append(lists[best][<Py_ssize_t> at[best] - <Py_ssize_t> starts[best]])
            at[best] += 1
        return chosen
    finally:
        free(read)


cdef list key_values(tuple key, int part, Py_ssize_t count):
    """What the elements of one list are sorted by."""
    parts, binary, array_oid, oid, _, _ = key
    if ARRAY_OF.get(oid) != array_oid:
        raise odd_value(array_oid)
    found = [value_of(element, binary) for element in split_array(parts[part], binary, array_oid)]
    if len(found) != count:
        raise odd_value(array_oid)
    return found


cdef int read_keys(list values, tuple key, SortKey* first, int step) except -1:
    """Read the values, each `step` behind the one before; they stay borrowed."""
    cdef uint32_t oid = key[3]
    cdef bint binary = key[1]
    cdef Py_ssize_t index
    cdef bytes value
    for index in range(len(values)):
        value = values[index]
        first[index * step].data = NULL
        if value is not None and not decode_key(oid, binary, value, len(value), &first[index * step]):
            raise odd_value(oid)
    return 0


cdef int compare_rows(const SortKey* one, const SortKey* other, list keys) except -2:
    """By all keys."""
    cdef int index, found
    cdef tuple key
    for index in range(len(keys)):
        key = keys[index]
        found = compare_keys(sort_class(key[3]), key[1], key[4], key[5], &one[index], &other[index])
        if found:
            return found
    return 0


def check_merge_arrays(list parts, bint binary, int oid, delimiter, list keys) -> bytes | None:
    """`merge_arrays`, or `join_arrays` without keys, for tests."""
    return merge_arrays(parts, binary, oid, delimiter, keys) if keys else join_arrays(parts, binary, oid)
