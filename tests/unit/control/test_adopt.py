"""What `adopt` proposes for made-up databases: the choice of roots, parents, reference tables, and what it explains."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreshard.proxy.catalog import Column
from foreshard.proxy.config import load_config
from foreshard.proxy.control.adopt import propose, proposed_tables
from foreshard.proxy.control.adopt_model import Kind, Live, Measures, Proposal
from foreshard.proxy.control.adopt_report import configuration_lines, report_lines, scalar
from foreshard.proxy.control.facts import Facts, ForeignKey, KeySource, TableFacts, UniqueIndex
from foreshard.proxy.control.sizes import bytes_text

DSN = "postgresql://app@10.0.0.1:5432/shop"
OIDS = {"bigint": 20, "integer": 23, "text": 25}


class Made:
    """A database put together by a test."""

    def __init__(self) -> None:
        self.tables: dict[str, TableFacts] = {}
        self.keys: list[ForeignKey] = []
        self.measures: dict[str, Measures] = {}

    def table(
        self, name: str, *, rows: int = 1000, updates: int = 0, key: str = "bigint", to: str = "", unique: str = "",
        **measures: object,
    ) -> None:  # fmt: skip
        """`to`: "customer_id->customer currency?->currency", `?` for columns that may be NULL."""
        links = [link.partition("->")[::2] for link in to.split()]
        columns = [Column(name="id", type_name=key, type_oid=OIDS[key], not_null=True)] if key else []
        columns += [
            Column(name=via.rstrip("?"), type_name="bigint", type_oid=20, not_null=not via.endswith("?"))
            for via, _ in links
        ]
        columns += [Column(name=word, type_name="text", type_oid=25) for word in unique.split()]
        indexes = [UniqueIndex(name=f"{name}_pkey", columns=("id",), is_primary=True, definition="")] if key else []
        indexes += [
            UniqueIndex(name=f"{name}_{word}_key", columns=(word,), is_primary=False, definition="")
            for word in unique.split()
        ]
        sources = {"id": KeySource(default=f"nextval('{name}_id_seq')", sequence=f"public.{name}_id_seq")}
        self.tables[f"public.{name}"] = TableFacts(
            schema="public", name=name, columns=tuple(columns), sources=sources if key else {}, unique=tuple(indexes)
        )
        self.keys += [
            ForeignKey(
                name=f"{name}_{via.rstrip('?')}_fkey", table=f"public.{name}", columns=(via.rstrip("?"),),
                target=f"public.{target}", target_columns=("id",),
            )
            for via, target in links
        ]  # fmt: skip
        given = {"bytes": rows * 100, "inserts": rows, "rows": rows, "updates": updates, **measures}
        self.measures[f"public.{name}"] = Measures(**given)  # type: ignore[arg-type]

    def live(self) -> Live:
        facts = Facts(shard="s0", tables=self.tables, foreign_keys=tuple(self.keys), views={}, indexes={}, functions={})
        return Live(name="shop", place="10.0.0.1:5432/shop", version="18.0", facts=facts, measures=self.measures)


@pytest.fixture
def made() -> Made:
    return Made()


@pytest.fixture
def shop(made: Made) -> Made:
    """Customers with orders with items, products, countries."""
    made.table("country", rows=200)
    made.table("customer", rows=100_000, to="country_id->country", unique="email")
    made.table("product", rows=5_000)
    made.table("orders", rows=1_000_000, updates=2_000_000, to="customer_id->customer")
    made.table("item", rows=5_000_000, to="order_id->orders product_id->product")
    return made


def lines(proposal: Proposal) -> list[str]:
    return [
        f"{table.name.removeprefix('public.')}: "
        + ("reference" if table.reference else f"{table.key} {table.parent or ''} {table.via or ''}".strip())
        for table in proposed_tables(proposal)
    ]


def test_a_group_is_found_from_the_top_of_its_foreign_keys(shop: Made) -> None:
    assert lines(propose(shop.live())) == [
        "customer: id",
        "orders: id public.customer customer_id",
        "item: id public.orders order_id",
        "product: reference",
        "country: reference",
    ]


def test_of_two_parents_the_larger_is_chosen_and_the_other_is_told(made: Made) -> None:
    made.table("store", rows=20_000)
    made.table("customer", rows=100_000)
    made.table("orders", rows=1_000_000, to="store_id->store customer_id->customer")
    proposal = propose(made.live())
    assert lines(proposal) == ["customer: id", "orders: id public.customer customer_id", "store: id"]
    orders = proposal.choices["public.orders"]
    assert "others: store_id -> store" in orders.why
    assert any("orders_store_id_fkey" in text and "crosses groups" in text for text in orders.later)


def test_a_parent_that_not_every_row_has_is_not_chosen(made: Made) -> None:
    made.table("customer", rows=100_000)
    made.table("agent", rows=200_000)
    made.table("orders", rows=1_000_000, to="agent_id?->agent customer_id->customer")
    made.table("log", rows=500_000, to="customer_id?->customer")
    proposal = propose(made.live())
    assert proposal.choices["public.orders"].parent == "public.customer"
    log = proposal.choices["public.log"]
    assert (log.kind, log.parent) == (Kind.PLAIN, None)
    assert log.why == "it could live with customer if every row had a customer_id"
    assert any("log_customer_id_fkey" in text for text in proposal.choices["public.customer"].later)


def test_a_column_that_may_be_null_but_never_is_will_do(made: Made) -> None:
    made.table("customer", rows=100_000)
    made.table("orders", rows=1_000_000, to="customer_id?->customer", null_shares={"customer_id": 0.0})
    assert propose(made.live()).choices["public.orders"].parent == "public.customer"


def test_a_small_table_that_changes_much_is_no_reference_table(shop: Made) -> None:
    shop.table("product", rows=5_000, updates=3_000_000)
    proposal = propose(shop.live())
    assert proposal.choices["public.product"].kind is Kind.ROOT
    assert any("crosses groups" in text for text in proposal.choices["public.item"].later)


def test_a_reference_table_may_only_reference_others_of_its_kind(made: Made) -> None:
    made.table("country", rows=10)
    made.table("city", rows=200, to="country_id->country")
    made.table("customer", rows=100_000, to="city_id->city")
    assert lines(propose(made.live())) == ["customer: id", "city: reference", "country: reference"]


def test_tables_that_need_each_other_are_one_group_with_the_larger_on_top(made: Made) -> None:
    made.table("account", rows=100_000, to="head_id->person")
    made.table("person", rows=300_000, to="account_id->account")
    assert lines(propose(made.live())) == ["person: id", "account: id public.person head_id"]


def test_a_root_that_references_itself_is_told(made: Made) -> None:
    made.table("category", rows=300_000, to="parent_id?->category")
    (told,) = propose(made.live()).choices["public.category"].later
    assert "references its own table" in told


@pytest.mark.parametrize(
    ("key", "told"), [("", "it has no primary key: add a bigint column as one"), ("integer", "column id is integer")]
)
def test_a_table_without_a_fitting_key_stays_plain_and_what_would_live_with_it_finds_another_way(
    made: Made, key: str, told: str
) -> None:
    made.table("customer", rows=100_000, key=key)
    made.table("orders", rows=1_000_000, to="customer_id->customer")
    proposal = propose(made.live())
    customer, orders = proposal.choices["public.customer"], proposal.choices["public.orders"]
    assert customer.kind is Kind.PLAIN
    assert customer.obstacles[0].startswith(told)
    assert orders.kind is Kind.ROOT
    assert any("orders_customer_id_fkey" in text and "is not declared" in text for text in orders.later)


def test_keys_that_foreshard_makes_itself_are_an_obstacle(made: Made) -> None:
    made.table("orders", has_reserved_keys=True)
    assert "2^52" in propose(made.live()).choices["public.orders"].obstacles[0]


def test_what_is_next_to_nothing_stays_plain(shop: Made) -> None:
    shop.table("setting", rows=10)
    assert propose(shop.live()).choices["public.setting"].kind is Kind.PLAIN


def test_what_one_shard_keeps_is_told_where_it_is(shop: Made) -> None:
    shop.table(
        "customer", rows=100_000, to="country_id->country", unique="email", exclusions=("no_overlap",),
        triggers=("touch",), has_row_security=True, is_unlogged=True,
    )  # fmt: skip
    later = propose(shop.live()).choices["public.customer"].later
    for word in ("customer_email_key", "no_overlap", "touch", "row security", "unlogged"):
        assert any(word in text for text in later), word


def test_the_file_is_valid_and_says_what_was_proposed(shop: Made, tmp_path: Path) -> None:
    live = shop.live()
    proposal = propose(live)
    file = tmp_path / "foreshard.yaml"
    file.write_text("\n".join(configuration_lines(live, proposal, DSN)))
    config = load_config(file)
    assert config.shards[0].dsn == DSN
    assert [table.name for table in config.tables] == ["customer", "orders", "item", "product", "country"]
    assert config.tables[2].parent == "orders"
    assert "customer_email_key" in file.read_text()


def test_a_password_is_left_to_the_environment(shop: Made, tmp_path: Path) -> None:
    live = shop.live()
    file = tmp_path / "foreshard.yaml"
    dsn = "postgresql://app:s%3Acret@10.0.0.1:5432/shop?application_name=${x}"
    file.write_text("\n".join(configuration_lines(live, propose(live), dsn)))
    assert "cret" not in file.read_text()
    assert load_config(file, {"FORESHARD_PASSWORD": "s%3Acret"}).shards[0].dsn == dsn


def test_an_empty_database_gives_a_valid_file_too(made: Made, tmp_path: Path) -> None:
    live = made.live()
    file = tmp_path / "foreshard.yaml"
    file.write_text("\n".join(configuration_lines(live, propose(live), DSN)))
    assert load_config(file).tables == ()
    assert report_lines(live, propose(live))


def test_the_report_shows_groups_as_trees_and_sizes(shop: Made) -> None:
    live = shop.live()
    said = report_lines(live, propose(live))
    assert any(line.startswith("    item") and "500 MB" in line for line in said)
    assert all(len(line) <= 130 for line in said)


@pytest.mark.parametrize(
    ("name", "written"), [("customer", "customer"), ("Order", "Order"), ("on", '"on"'), ("null", '"null"')]
)
def test_names_are_written_so_that_yaml_reads_them_back(name: str, written: str) -> None:
    assert scalar(name) == written


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (8192, "8.19 kB"), (99_950, "100 kB"), (10**14, "100 TB")],
)
def test_sizes_have_three_digits(size: int, shown: str) -> None:
    assert bytes_text(size) == shown
