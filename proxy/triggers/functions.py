"""Registered trigger functions as Python objects: found by "module:callable", imported when first called."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from foreshard.proxy.config import Config, TriggerConfig
from foreshard.proxy.errors import ForeshardError


class Function(msgspec.Struct, frozen=True):
    """One registered function, ready to be called."""

    trigger: TriggerConfig
    call: Callable[[Any], Any]
    is_async: bool


class Functions:
    """The registered functions of a configuration by name. A module is imported when one of its functions is needed."""

    def __init__(self, triggers: Sequence[TriggerConfig]) -> None:
        self._triggers = {trigger.name: trigger for trigger in triggers}
        self._found: dict[str, Function] = {}

    def trigger(self, name: str) -> TriggerConfig | None:
        """The configuration of a function; None when it is not registered."""
        return self._triggers.get(name)

    def is_loaded(self, name: str) -> bool:
        """Whether `find` needs no import."""
        return name in self._found

    def find(self, name: str) -> Function:
        """The function to call; raises what its import raises, or says what is wrong with its name."""
        found = self._found.get(name)
        if found is None:
            trigger = self._triggers.get(name)
            if trigger is None:
                raise ForeshardError(f"no trigger function is registered as {name!r} in this worker's configuration")
            found = self._found[name] = load_function(trigger)
        return found


def load_function(trigger: TriggerConfig) -> Function:
    """Import the function of one trigger."""
    module_name, _, path = trigger.function.partition(":")
    target: Any = importlib.import_module(module_name)
    for part in path.split("."):
        if not hasattr(target, part):
            raise ForeshardError(f"trigger {trigger.name}: module {module_name} has no {path!r}")
        target = getattr(target, part)
    if not callable(target):
        raise ForeshardError(f"trigger {trigger.name}: {trigger.function} cannot be called")
    is_async = inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(type(target).__call__)
    return Function(trigger, target, is_async)


def functions_folder(config: Config) -> Path:
    """The folder whose modules trigger functions are found in."""
    return (config.functions_path or config.path.parent).absolute()


def add_functions_folder(config: Config) -> None:
    """Put the folder of trigger functions first on sys.path."""
    folder = str(functions_folder(config))
    if folder not in sys.path:
        sys.path.insert(0, folder)
