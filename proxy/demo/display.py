"""What the demo shows while it runs and at its end: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PLAIN_INTERVAL_S = 2.0

Advance = Callable[[int], None]  # sets how much of the step is done


class Display:
    """Progress bars and tables. One per demo."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self.is_plain = not self._console.is_terminal

    def say(self, text: str) -> None:
        """One line."""
        if self.is_plain:
            print(text, flush=True)
        else:
            self._console.print(text, markup=False)

    @contextlib.contextmanager
    def step(self, title: str, total: int) -> Iterator[Advance]:
        """A progress bar over `total`, or a line now and then; at most one at a time."""
        if self.is_plain:
            yield from self._plain_step(title, total)
            return
        columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task(title, total=max(total, 1))
            yield lambda done: progress.update(task, completed=min(done, total) if total else 1)

    def _plain_step(self, title: str, total: int) -> Iterator[Advance]:
        began_s = shown_s = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, shown_s
            done = count
            if time.monotonic() - shown_s >= PLAIN_INTERVAL_S:
                shown_s = time.monotonic()
                self.say(f"{title}: {done} of {total}")

        yield advance
        self.say(f"{title}: {done} of {total}, {time.monotonic() - began_s:.1f} s")

    def table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column is a name, the others are figures."""
        if self.is_plain:
            self._plain_table(title, headings, rows)
            return
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self._console.print()
        self._console.print(table)

    def _plain_table(self, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        widths = [max(len(row[index]) for row in [headings, *rows]) for index in range(len(headings))]
        lines = [
            "  ".join(
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in [headings, ["-" * width for width in widths], *rows]
        ]
        print("\n".join(["", title, *lines]), flush=True)


def complain(text: str) -> None:
    """One line on standard error."""
    print(f"foreshard demo: {text}", file=sys.stderr, flush=True)
