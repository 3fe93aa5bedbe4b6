"""What only the first shard has: the names by which DDL is told that belongs there alone."""

from __future__ import annotations

from collections.abc import Iterable

NAMES = """
SELECT coalesce(array_agg(DISTINCT name), '{}')::text[] AS names FROM (
  SELECT c.relname::text AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c', 'i') AND n.nspname !~ '^pg_'
    AND n.nspname NOT IN ('information_schema', 'foreshard')
  UNION ALL
  SELECT t.typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
  WHERE t.typtype IN ('e', 'd', 'r', 'b') AND t.typelem = 0 AND n.nspname !~ '^pg_'
    AND n.nspname NOT IN ('information_schema', 'foreshard')
  UNION ALL
  SELECT p.proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
  WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'foreshard')
  UNION ALL
  SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'
) AS named
"""


def local_names(names_by_shard: Iterable[Iterable[str]]) -> frozenset[str]:
    """The names that the first shard has and some other has not."""
    first, *others = [frozenset(names) for names in names_by_shard]
    return first - frozenset.intersection(first, *others)
