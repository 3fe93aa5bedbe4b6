"""Tables, keys, parents and registered functions: an immutable snapshot."""
