"""PostgreSQL's numeric, exactly: read, added, divided by a count, and written as numeric_out and numeric_send do.

A numeric is (digits as an integer, digits after the point), or (word, 0) for NaN, Infinity and -Infinity.

Source: numeric.c of PostgreSQL 17 (select_div_scale, div_var, numeric_send).
"""

import struct

SPECIALS = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}
SIGNS = {word: sign for sign, word in SPECIALS.items()}
DIGITS = 4                      # decimal digits in one of PostgreSQL's
SIGNIFICANT_DIGITS_MIN = 16     # of a quotient
SCALE_MAX = 1000                # NUMERIC_MAX_DISPLAY_SCALE


cdef tuple decode_numeric(bytes data, bint binary):
    """A numeric, or an integer in text, out of a row; ValueError when it is none."""
    if not binary:
        text = data.decode("ascii")
        if text in SIGNS:
            return (text, 0)
        whole, _, fraction = text.partition(".")
        return (int(whole + fraction), len(fraction))
    count, weight, sign, scale = struct.unpack_from("!hhHh", data)
    if sign in SPECIALS:
        return (SPECIALS[sign], 0)
    value = 0
    for digit in struct.unpack_from(f"!{count}h", data, 8):
        value = value * 10000 + digit
    shift = (weight + 1 - count) * DIGITS + scale       # digits are worth 10^(4 * (weight + 1 - count))
    value = value * 10 ** shift if shift >= 0 else value // 10 ** -shift
    return (-value if sign else value, scale)


cdef bytes encode_numeric(tuple value, bint binary):
    """The numeric as a row has it."""
    digits, scale = value
    if isinstance(digits, str):
        return struct.pack("!hhHh", 0, 0, SIGNS[digits], 0) if binary else digits.encode()
    if not binary:
        text = str(abs(digits)).rjust(scale + 1, "0")
        whole = text[:len(text) - scale]
        return (("-" if digits < 0 else "") + whole + ("." + text[len(text) - scale:] if scale else "")).encode()
    rest = abs(digits)
    groups = -(-scale // DIGITS)                        # base-10000 digits after the point
    rest *= 10 ** (groups * DIGITS - scale)
    found = []
    while rest:
        rest, digit = divmod(rest, 10000)
        found.append(digit)
    found.reverse()
    weight = len(found) - groups - 1
    while found and found[len(found) - 1] == 0:
        found.pop()
    if not found:
        weight = 0
    return struct.pack(f"!hhHh{len(found)}h", len(found), weight, 0x4000 if digits < 0 else 0, scale, *found)


cdef tuple add_numerics(tuple one, tuple other):
    """Their sum."""
    first, first_scale = one
    second, second_scale = other
    if isinstance(first, str) or isinstance(second, str):
        words = {word for word in (first, second) if isinstance(word, str)}
        return (words.pop(), 0) if len(words) == 1 else ("NaN", 0)
    scale = max(first_scale, second_scale)
    return (first * 10 ** (scale - first_scale) + second * 10 ** (scale - second_scale), scale)


cdef tuple leading_digit(object digits, object scale):
    """Weight and value of the first base-10000 digit that is not zero; (0, 0) for zero."""
    groups = -(-scale // DIGITS)
    rest = abs(digits) * 10 ** (groups * DIGITS - scale)
    if rest == 0:
        return (0, 0)
    size = (len(str(rest)) + DIGITS - 1) // DIGITS
    return (size - groups - 1, rest // 10000 ** (size - 1))


cdef tuple divide_numeric(tuple sum, object count):
    """A sum divided by a positive integer, with as many digits as numeric_div gives."""
    digits, scale = sum
    if isinstance(digits, str):
        return sum
    weight, first = leading_digit(digits, scale)
    other_weight, other_first = leading_digit(count, 0)
    weight -= other_weight + (first <= other_first)
    result = min(max(SIGNIFICANT_DIGITS_MIN - weight * DIGITS, scale, 0), SCALE_MAX)
    dividend, divisor = abs(digits) * 10 ** (result + 1), count * 10 ** scale
    quotient = (dividend // divisor + 5) // 10          # half away from zero
    return (-quotient if digits < 0 else quotient, result)


def check_numeric(bytes data, bint binary, bint to_binary) -> bytes:
    """Read and write, for tests."""
    return encode_numeric(decode_numeric(data, binary), to_binary)


def check_average(list values, bint binary) -> bytes:
    """The average of numerics in text, for tests."""
    cdef tuple total = (0, 0)
    for value in values:
        total = add_numerics(total, decode_numeric(value, False))
    return encode_numeric(divide_numeric(total, len(values)), binary)
