"""The rules of the house, enforced over the source tree."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES_MAX = 600
FUNCTION_LINES_MAX = 60
# Lowest first: a package may import itself and those before it.
LAYERS = [
    "_core",
    "proxy.errors",
    "proxy.config",
    "proxy.catalog",
    "proxy.profiles",
    "proxy.placement",
    "proxy.routing",
    "proxy.rebalance",
    "proxy.embedded",
    "proxy.wire",
    "proxy.backend",
    "proxy.execute",
    "proxy.session",
    "proxy.triggers",
    "proxy.control",
    "proxy.move",
    "proxy.admin",
    "proxy.router_views",
    "proxy.router",
    "proxy.children",
    "proxy.server",
    "proxy.demo",
    "proxy.__main__",
]
PURE = ("_core", "proxy/catalog", "proxy/routing", "proxy/placement", "proxy/profiles", "proxy/rebalance")
IMPURE_MODULES = {"asyncio", "socket", "ssl", "time", "random", "logging", "asyncpg", "uvloop"}


def sources(pattern: str) -> list[Path]:
    folders = ("_core", "proxy", "tests", "bench")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob(pattern))


def imported_modules(path: Path) -> list[str]:
    """Dotted names imported by a Python or Cython file (read as text, so that both work)."""
    found = []
    for line in path.read_text().splitlines():
        match = re.match(r"\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", line)
        if match:
            found.append(match.group(1) or match.group(2))
    return found


def layer_of(module: str) -> int | None:
    """Index of the longest layer name that the module is in; None for modules that are not ours."""
    if not module.startswith("foreshard."):
        return None
    name = module.removeprefix("foreshard.")
    fitting = [index for index, layer in enumerate(LAYERS) if name == layer or name.startswith(layer + ".")]
    assert fitting or name == "proxy", f"{module} has no place in LAYERS"
    return max(fitting, key=lambda index: len(LAYERS[index])) if fitting else 0


@pytest.mark.parametrize("path", [*sources("*.py"), *sources("*.pyx")], ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short_enough(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LINES_MAX


@pytest.mark.parametrize("path", sources("*.py"), ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_enough(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES_MAX, f"{path}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", sources("*.pyx"), ids=lambda path: str(path.relative_to(ROOT)))
def test_cython_functions_are_short_enough(path: Path) -> None:
    starts = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines):
        if (re.match(r"( {4})?(cdef|cpdef|def)\s[^=]*\(.*", line) and not re.match(r"\s*cdef class", line)) or re.match(
            r"(cdef class|class|@)", line
        ):
            starts.append(number)
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        body = [line for line in lines[start:end] if line.strip()]
        if not re.match(r"(cdef class|class|@)", lines[start]):
            assert len(body) <= FUNCTION_LINES_MAX + 5, f"{path}:{start + 1}"


@pytest.mark.parametrize(
    "path",
    [path for folder in ("_core", "proxy") for path in sorted((ROOT / folder).rglob("*.py*")) if path.suffix != ".pyc"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_imports_go_down_and_pure_packages_stay_pure(path: Path) -> None:
    if path.suffix not in {".py", ".pyx", ".pxd"}:
        return
    relative = path.relative_to(ROOT)
    own = layer_of("foreshard." + ".".join(relative.with_suffix("").parts).removesuffix(".__init__"))
    assert own is not None
    for module in imported_modules(path):
        other = layer_of(module)
        if other is not None:
            assert other <= own, f"{relative} imports {module}, which is above it"
        if str(relative).startswith(PURE):
            assert module.split(".")[0] not in IMPURE_MODULES, f"{relative} imports {module}"


def test_core_imports_nothing_of_the_proxy() -> None:
    for path in [*(ROOT / "_core").glob("*.pyx"), *(ROOT / "_core").glob("*.pxd"), *(ROOT / "_core").glob("*.py")]:
        assert not [name for name in imported_modules(path) if name.startswith("foreshard.proxy")], path


def test_every_package_is_listed_in_pyproject() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    present = {
        "foreshard." + ".".join(path.parent.relative_to(ROOT).parts)
        for folder in ("_core", "proxy")
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert present == listed


@pytest.mark.parametrize("path", sources("*.pyx"), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_compiled_module_has_a_stub(path: Path) -> None:
    assert path.with_suffix(".pyi").exists()


def test_no_file_lacks_its_opening_sentence() -> None:
    for path in [*(ROOT / "_core").rglob("*.pyx"), *(ROOT / "proxy").rglob("*.pyx"), *(ROOT / "proxy").rglob("*.py")]:
        text = path.read_text().lstrip()
        assert text.startswith(('"""', 'r"""')), f"{path} has no module docstring"
