"""Errors of the whole proxy: one type for what a client is told, one for configuration, one for operators."""

from __future__ import annotations

from foreshard._core.errors import ForeshardError, SqlError, not_built

__all__ = ["ConfigError", "ForeshardError", "SqlError", "not_built"]


class ConfigError(ForeshardError):
    """One or more mistakes in the configuration; each message names file, line or path, and what is allowed."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
