"""Tables, keys, parents and registered functions: an immutable snapshot."""

from foreshard.proxy.catalog.model import Catalog, Column, Function, QueryNode, Table, TableKind

__all__ = ["Catalog", "Column", "Function", "QueryNode", "Table", "TableKind"]
