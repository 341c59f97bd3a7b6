"""Where questions come from: one module per source with ``load(benchmark, split, **options) -> QuestionSet``."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any, cast

from harness.base import unknown
from tasks.questions import QuestionSet


def names() -> list[str]:
    """Return the names of the sources: the modules of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def load(source: str, benchmark: str, split: str, **options: Any) -> QuestionSet:
    """Return the questions of ``benchmark``'s ``split`` from ``source``.

    Raises:
        UserError: for an unknown source, option, benchmark or split, or data that cannot be read.
    """
    if source not in names():
        raise unknown("source", source, names())
    module = importlib.import_module(f"{__name__}.{source}")
    known = {name for name, each in inspect.signature(module.load).parameters.items() if each.kind is each.KEYWORD_ONLY}
    for option in options:
        if option not in known:
            raise unknown(f"option of the source {source!r}", option, known)
    return cast(QuestionSet, module.load(benchmark, split, **options))
