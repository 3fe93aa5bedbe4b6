"""Compiled modules of Foreshard; everything else about the package is in pyproject.toml.

`foreshard` is a namespace package without a folder of its own: Cython finds `foreshard._core` and
`foreshard.proxy` through links made in build/shim. Environment: FORESHARD_TRACE=1 builds with line
tracing (coverage).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
SHIM = Path("build/shim")
JOBS = os.cpu_count() or 1
TRACE = os.environ.get("FORESHARD_TRACE") == "1"


def make_shim() -> None:
    """Link the two top folders under the name they are imported by."""
    package = ROOT / SHIM / "foreshard"
    package.mkdir(parents=True, exist_ok=True)
    for folder in ("_core", "proxy"):
        link = package / folder
        if not link.is_symlink():
            link.symlink_to(Path("../../..") / folder)


def find_extensions() -> list[Extension]:
    """One extension per .pyx file, named by its place."""
    found = sorted([*ROOT.glob("_core/*.pyx"), *ROOT.glob("proxy/**/*.pyx")])
    macros = [("CYTHON_TRACE", "1")] if TRACE else []
    return [
        Extension(
            "foreshard." + ".".join(path.relative_to(ROOT).with_suffix("").parts),
            [str(path.relative_to(ROOT))],
            define_macros=macros,
            extra_compile_args=["-O2", "-g0"],
        )
        for path in found
    ]


make_shim()
setup(
    ext_modules=cythonize(
        find_extensions(),
        include_path=[str(SHIM)],
        nthreads=JOBS,
        compiler_directives={
            "language_level": 3,
            "auto_pickle": False,
            "autotestdict": False,
            "embedsignature": True,
            "linetrace": TRACE,
        },
    ),
    options={"build_ext": {"parallel": JOBS}},
)
