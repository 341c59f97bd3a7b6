"""Formats of gold files: one module each, with ``BENCHMARKS``, ``WHAT`` and ``rows(benchmark, content) -> rows or None``.

``None`` means "not this format". Rows come out in the official data set's columns, whatever the file calls them.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from harness.base import UserError
from tasks.answers.files import Content


def _modules() -> list[ModuleType]:
    names = sorted(found.name for found in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def rows(benchmark: str, content: Content) -> tuple[list[dict[str, Any]], bool]:
    """Return a gold file's rows in official columns, and whether the file is itself a file of replies without ids.

    Raises:
        UserError: for content that no format of the benchmark recognises, listing those that there are.
    """
    known = [module for module in _modules() if benchmark in module.BENCHMARKS]
    for module in known:
        found = module.rows(benchmark, content)
        if found is not None:
            return found, bool(getattr(module, "REPLIES_WITHOUT_IDS", False))
    listed = "; ".join(module.WHAT for module in known) or "none"
    raise UserError(f"{content.path}: not a gold file of {benchmark}. Known formats: {listed}")
