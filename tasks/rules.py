"""Published rules: the functions of ``tasks/protocols/*.py`` that a protocol names as ``module.function``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.base import unknown

_PACKAGE = "tasks.protocols"
_FOLDER = Path(__file__).parent / "protocols"


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{_PACKAGE}.{name}")


def _functions(name: str) -> dict[str, Callable[..., Any]]:
    """Return the public functions that a module defines itself."""
    module = _module(name)
    found = inspect.getmembers(module, inspect.isfunction)
    return {key: value for key, value in found if not key.startswith("_") and value.__module__ == module.__name__}


def modules() -> list[str]:
    """Return the names of the modules that hold published rules."""
    return sorted(found.name for found in pkgutil.iter_modules([str(_FOLDER)]) if not found.name.startswith("_"))


def rule(kind: str, name: str) -> Callable[..., Any]:
    """Return the function that a protocol names.

    Args:
        kind: for the error (``prompt``, ``parser``, ``score``, ``keep``).
        name: ``module.function``.

    Raises:
        UnknownName: when there is no such function; lists those of its module, or of all modules.
    """
    module = name.partition(".")[0]
    within = [module] if module in modules() else modules()
    known = {f"{each}.{key}": value for each in within for key, value in _functions(each).items()}
    if name not in known:
        raise unknown(f"published {kind} rule", name, known)
    return known[name]
