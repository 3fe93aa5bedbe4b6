"""The tables of the random suite: every kind of table and every type of key, as data for generators and as SQL.

The reference database has the same tables, but for one thing: where a shard makes the key of a new row, the reference
takes the key that the proxy's row got, looked up by the row's mark in a file that the runner writes (a file, because no
snapshot and no rollback hides it).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

# Types as the generators of expressions know them.
SQL_TYPES = {
    "int": "integer",
    "big": "bigint",
    "num": "numeric",
    "text": "text",
    "varchar": "varchar",
    "bool": "bool",
    "date": "date",
    "ts": "timestamptz",
    "uuid": "uuid",
    "mood": "mood",
    "array": "text[]",
    "json": "jsonb",
    "bytea": "bytea",
    "small": "smallint",
    "stamp": "timestamp",
}


class Table(NamedTuple):
    """One table: its columns by type, and how its rows are found."""

    name: str
    kind: str  # root, child, reference, plain
    key: tuple[str, ...]
    columns: dict[str, str]
    is_generated: bool = False  # the database makes the key; the row is known by its mark
    parent: str = ""
    via: str = ""
    tail: str = ""  # of CREATE TABLE
    required: tuple[str, ...] = ()
    unique: tuple[str, ...] = ()  # declared to be so over all shards; of a child's key: clients may give it
    routing: tuple[str, ...] = ()  # where it is a part of the key only
    by_cost: bool = False  # rows whose keys clients give are placed by cost

    def free_columns(self) -> list[str]:
        """Columns that are no key, no mark, and tie the row to nothing."""
        return [name for name in self.columns if name not in (*self.key, "mark", self.via)]


TABLES = (
    Table("country", "reference", ("code",), {"code": "text", "label": "text", "rank": "int"}),
    Table("currency", "reference", ("code",), {"code": "text", "rate": "num", "since": "date"}),
    Table(
        "account",
        "root",
        ("id",),
        {
            **{"id": "big", "mark": "text", "owner": "text", "level": "int", "balance": "num", "mood": "mood"},
            **{"tags": "array", "meta": "json", "opened": "date", "seen": "ts", "country": "text", "active": "bool"},
        },
        is_generated=True,
        tail="CHECK (level < 1000), FOREIGN KEY (country) REFERENCES country",
        required=("level",),
    ),
    Table(
        "orders",
        "child",
        ("id",),
        {
            **{"id": "big", "mark": "text", "account_id": "big", "title": "text", "total": "num", "quantity": "int"},
            **{"placed": "ts", "paid": "bool"},
        },
        is_generated=True,
        parent="account",
        via="account_id",
        tail="FOREIGN KEY (account_id) REFERENCES account ON DELETE CASCADE, CHECK (quantity >= 0)",
        required=("account_id",),
    ),
    Table(
        "item",
        "child",
        ("id",),
        {"id": "big", "mark": "text", "orders_id": "big", "name": "text", "price": "num", "n": "int"},
        is_generated=True,
        parent="orders",
        via="orders_id",
        tail="FOREIGN KEY (orders_id) REFERENCES orders ON DELETE CASCADE",
        required=("orders_id",),
        unique=("id",),
    ),
    Table(
        "parcel",
        "root",
        ("id",),
        {"id": "uuid", "mark": "text", "label": "text", "weight": "int", "sent": "date"},
        is_generated=True,
    ),
    Table(
        "scan",
        "child",
        ("id",),
        {"id": "uuid", "mark": "text", "parcel_id": "uuid", "place": "text", "n": "int"},
        is_generated=True,
        parent="parcel",
        via="parcel_id",
        tail="FOREIGN KEY (parcel_id) REFERENCES parcel",
        required=("parcel_id",),
    ),
    Table(
        "member",
        "root",
        ("id",),
        {"id": "big", "mark": "text", "email": "text", "name": "text", "score": "int"},
        is_generated=True,
        unique=("email",),
    ),
    Table("city", "root", ("name",), {"name": "text", "mayor": "text", "size": "int", "founded": "date"}),
    Table(
        "street",
        "child",
        ("id",),
        {"id": "big", "mark": "text", "city": "text", "title": "text", "houses": "int"},
        is_generated=True,
        parent="city",
        via="city",
        tail="FOREIGN KEY (city) REFERENCES city ON DELETE CASCADE",
        required=("city",),
        unique=("id",),
    ),
    Table("label", "root", ("code",), {"code": "varchar", "title": "text", "rank": "int"}),
    Table("device", "root", ("id",), {"id": "uuid", "name": "text", "n": "int", "raw": "bytea"}),
    Table("seat", "root", ("no",), {"no": "int", "title": "text", "price": "num"}, tail="CHECK (price >= 0)"),
    Table("meter", "root", ("number",), {"number": "big", "reading": "int", "remark": "text"}),
    Table("blob", "root", ("digest",), {"digest": "bytea", "size": "int", "kind": "text"}),
    Table("holiday", "root", ("day",), {"day": "date", "name": "text", "rank": "int"}),
    Table("tick", "root", ("at",), {"at": "ts", "value": "int", "source": "text"}),
    Table("slot", "root", ("room", "no"), {"room": "text", "no": "int", "title": "text", "price": "num"}),
    Table(
        "booking",
        "child",
        ("room", "no", "place"),
        {"room": "text", "no": "int", "place": "int", "guest": "text", "paid": "num"},
        tail="FOREIGN KEY (room, no) REFERENCES slot ON DELETE CASCADE",
    ),
    Table(
        "entry",
        "root",
        ("tenant", "id"),
        {"tenant": "text", "id": "int", "body": "text", "n": "int"},
        routing=("tenant",),
    ),
    Table("shelf", "root", ("no",), {"no": "small", "title": "text", "depth": "int"}),
    Table("moment", "root", ("at",), {"at": "stamp", "value": "int", "source": "text"}),
    Table("venue", "root", ("name",), {"name": "text", "town": "text", "seats": "int"}, by_cost=True),
    Table(
        "show",
        "child",
        ("id",),
        {"id": "big", "mark": "text", "venue": "text", "title": "text", "tickets": "int"},
        is_generated=True,
        parent="venue",
        via="venue",
        tail="FOREIGN KEY (venue) REFERENCES venue ON DELETE CASCADE",
        required=("venue",),
    ),
    Table("badge", "root", ("no",), {"no": "big", "holder": "text", "rank": "int"}, by_cost=True),
    Table(
        "coupon",
        "root",
        ("id",),
        {"id": "big", "mark": "text", "code": "text", "worth": "int"},
        is_generated=True,
        unique=("code",),
    ),
    Table("ledger", "plain", ("id",), {"id": "int", "body": "text", "score": "int", "on_day": "date"}),
    Table("memo", "plain", ("id",), {"id": "int", "body": "text", "amount": "num"}),
)
BY_NAME = {table.name: table for table in TABLES}
GENERATED = tuple(table for table in TABLES if table.is_generated)
CHILDREN = tuple(table for table in TABLES if table.parent)
DECLARED = {
    table.name: {"reference": True}
    if table.kind == "reference"
    else {"key": (table.routing or table.key)[0] if len(table.routing or table.key) == 1 else list(table.key)}
    | ({"placement": "cost"} if table.by_cost else {})
    | ({"parent": table.parent, "via": table.via} if table.parent else {})
    | ({"unique": list(table.unique)} if table.unique else {})
    for table in TABLES
    if table.kind != "plain"
}
# Unique values of this table meet in ON CONFLICT only, whose arbiter must not be deferrable.
AT_ONCE = frozenset(("coupon",))
SPECIAL = {  # column definitions that the type alone does not give
    "account.level": "integer NOT NULL DEFAULT 3",
    "account.balance": "numeric(10,2) DEFAULT 0.00",
    "orders.quantity": "integer NOT NULL DEFAULT 1",
    "label.code": "varchar(12)",
    "ledger.id": "serial",
}


def column_sql(table: Table, name: str, kind: str, by_file: bool) -> str:
    """One column of CREATE TABLE."""
    special = SPECIAL.get(f"{table.name}.{name}")
    text = special or ("numeric(10,2)" if kind == "num" else SQL_TYPES[kind])
    if table.is_generated and name == table.key[0]:
        if by_file:
            text += f" DEFAULT twin.unset_{kind}()"
        else:
            text = "bigserial" if kind == "big" else "uuid DEFAULT gen_random_uuid()"
    required = " NOT NULL" if name in table.required and "NOT NULL" not in text else ""
    return f"{name} {text}{required}"


def table_sql(table: Table, by_file: bool) -> str:
    """CREATE TABLE."""
    columns = [column_sql(table, name, kind, by_file) for name, kind in table.columns.items()]
    rest = [f"PRIMARY KEY ({', '.join(table.key)})", *([table.tail] if table.tail else [])]
    # Over several shards a value that stands twice is found at the end of the transaction.
    when = "" if table.name in AT_ONCE else " DEFERRABLE INITIALLY DEFERRED"
    if by_file or not when:
        rest += [f"UNIQUE ({name}){when}" for name in table.unique if name not in table.key]
    return f"CREATE TABLE {table.name} ({', '.join([*columns, *rest])});"


TYPES = "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');\n"
SCHEMA = TYPES + "\n".join(table_sql(table, by_file=False) for table in TABLES)


def reference_schema(keys: Path) -> str:
    """The tables of the reference, whose generated keys come from a file `{mark: key}`."""
    functions = f"""
    CREATE SCHEMA twin;
    CREATE SEQUENCE twin.spare;
    CREATE FUNCTION twin.unset_big() RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT -9000000000000000001';
    CREATE FUNCTION twin.unset_uuid() RETURNS uuid LANGUAGE sql IMMUTABLE
      AS 'SELECT ''ffffffff-0000-0000-0000-000000000001''::uuid';
    CREATE FUNCTION twin.take_big() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
      IF NEW.id = twin.unset_big() THEN
        NEW.id := coalesce((pg_read_file('{keys}')::jsonb ->> NEW.mark)::bigint, -10000000000 - nextval('twin.spare'));
      END IF; RETURN NEW; END $$;
    CREATE FUNCTION twin.take_uuid() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
      IF NEW.id = twin.unset_uuid() THEN
        NEW.id := coalesce((pg_read_file('{keys}')::jsonb ->> NEW.mark)::uuid, gen_random_uuid());
      END IF; RETURN NEW; END $$;
    """
    triggers = [
        f"CREATE TRIGGER take BEFORE INSERT ON {table.name} FOR EACH ROW "
        f"EXECUTE FUNCTION twin.take_{table.columns[table.key[0]]}();"
        for table in GENERATED
    ]
    return TYPES + functions + "\n".join(table_sql(table, by_file=True) for table in TABLES) + "\n".join(triggers)
