"""The suite: scripts of several seeds, one after the other, and the tables compared at the end of each."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from tests.differential.pieces import Unit
from tests.differential.report import Tally
from tests.differential.runner import Mismatch, Runner, shrink
from tests.differential.schema import TABLES
from tests.differential.scripts import Script, fill_units
from tests.differential.sides import World

REFRESH_SHARE = 0.15


@dataclass
class Options:
    """What to run."""

    seed: int = 1
    seeds: int = 1
    statements: int = 500
    seconds: float = 0.0  # no new seed after so much time; 0: no bound
    shrink_s: float = 60.0
    keep_going: bool = False


def refresh(script: Script, world: World) -> None:
    """Tell the generators which rows exist."""
    for table in TABLES:
        if table.is_generated:
            rows = world.rows_of_reference(f"SELECT mark, {table.key[0]}::text FROM {table.name} ORDER BY mark")
            script.world.marks[table.name] = [row[0] for row in rows]
            world.keys.by_mark.update({row[0]: row[1] for row in rows})
        else:
            rows = world.rows_of_reference(f"SELECT {table.key[0]}::text FROM {table.name} ORDER BY 1")
            script.world.keys[table.name] = [row[0] for row in rows]


def run_seed(world: World, seed: int, statements: int, tally: Tally) -> None:
    """One script, from empty tables; Mismatch where the sides differ."""
    world.empty()
    script = Script(seed)
    fill = fill_units(seed, script)
    runner = Runner(world, Tally())
    try:
        for unit in fill:
            runner.step(unit)
        runner.script.clear()
        runner.tally = tally
        refresh(script, world)
        asked = 0
        while asked < statements or runner.status != "I":
            unit = script.next_unit(runner.status)
            runner.step(unit)
            asked += len(unit.statements)
            for table, marks in runner.new_marks.items():
                script.world.marks.setdefault(table, []).extend(marks)
            runner.new_marks.clear()
            if runner.status == "I" and script.draw.random() < REFRESH_SHARE:
                refresh(script, world)
        compare_tables(world, runner)
    except Mismatch as mismatch:
        raise reduced(world, runner, mismatch, fill) from None
    finally:
        runner.close()


def compare_tables(world: World, runner: Runner) -> None:
    """Every table: by the proxy, on the shards themselves, and in the reference."""
    for table in TABLES:
        columns = ", ".join(f"{name}::text" for name in table.columns)
        expected = sorted(world.rows_of_reference(f"SELECT {columns} FROM {table.name}"), key=repr)
        per_shard = world.rows_of_shards(f"SELECT {columns} FROM {table.name}")
        held = {"reference": per_shard, "plain": per_shard[:1]}.get(
            table.kind, [[r for rows in per_shard for r in rows]]
        )
        for rows in held:
            if sorted(rows, key=repr) != expected:
                unit = runner.script[-1]
                raise Mismatch(
                    unit,
                    repr(sorted(rows, key=repr)),
                    repr(expected),
                    tuple(runner.script),
                    f"at the end, table {table.name} differs",
                )


def reduced(world: World, runner: Runner, mismatch: Mismatch, fill: list[Unit]) -> Mismatch:
    """The mismatch with its statement cut down, when it is a SELECT by itself."""
    unit = mismatch.unit
    if len(unit.statements) == 1 and unit.statements[0].is_select and mismatch.expected != "an answer":
        for client in (runner.proxied, runner.reference):
            client.connection.query("ROLLBACK")
            client.status = "I"
        statement, form = unit.statements[0], replace(unit.forms[0], is_named=False)
        if runner.differs(statement, form):
            small = runner.reduce(statement, form)
            mismatch.note = f"cut down to: {small.sql.as_literals(world.keys.resolve)}"
    return mismatch


def run(world: World, options: Options, tally: Tally) -> None:
    """All seeds; a Mismatch is kept in the tally, with the line that repeats it, and raised unless it shall go on."""
    started = time.monotonic()
    for seed in range(options.seed, options.seed + options.seeds):
        if options.seconds and time.monotonic() - started > options.seconds:
            break
        tally.seeds.append(seed)
        try:
            run_seed(world, seed, options.statements, tally)
        except Mismatch as mismatch:
            command = f"python -m tests.differential --seed {seed} --statements {options.statements}"
            text = f"{command}\n{mismatch}"
            if not mismatch.note.startswith("cut down") and options.shrink_s:
                fill = fill_units(seed, Script(seed))
                units = shrink(world, fill, mismatch.script, options.shrink_s)
                text += "\nshrunk to:\n  " + "\n  ".join(unit.describe() for unit in units)
            tally.mismatches.append(text)
            if not options.keep_going:
                raise AssertionError(text) from None
