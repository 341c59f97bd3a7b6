"""Registries made of files: ``students/energies/NAME.py`` is the energy ``NAME``, ``students/weightings/NAME.py`` a weighting.

A new file is all it takes; names that start with an underscore are helpers. Listing imports nothing, so that recipes can be
checked without torch.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.base import UserError, unknown

ROOT = Path(__file__).parent


def names(folder: str) -> tuple[str, ...]:
    """List the public modules of ``students/FOLDER``, sorted, without importing them."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules([str(ROOT / folder)]) if not m.name.startswith("_")))


def find(kind: str, folder: str, attribute: str, name: str) -> Any:
    """Import ``students/FOLDER/NAME.py`` and return its class ``attribute``.

    Raises:
        UserError: (also a ``KeyError``) when there is no such file, naming near matches.
    """
    if name not in names(folder):
        raise unknown(kind, name, names(folder))
    return getattr(importlib.import_module(f"students.{folder}.{name}"), attribute)


def check_options(kind: str, name: str, factory: Any, options: Iterable[str], given_anyway: Iterable[str] = ()) -> None:
    """Refuse options that ``factory`` does not take.

    Raises:
        UserError: naming the option, the ones that exist, and near matches.
    """
    accepted = set(inspect.signature(factory).parameters) - set(given_anyway)
    for option in options:
        if option not in accepted:
            raise unknown(f"option of {kind} {name!r}:", option, accepted)


def per_channel(what: str, value: float | Mapping[str, float], channels: Iterable[str]) -> dict[str, float]:
    """Spread one number over ``channels``, or check a mapping that must name each of them once; all must be >= 0.

    Raises:
        UserError: for a channel that is missing, unknown, negative or not finite.
    """
    wanted = tuple(channels)
    table = dict.fromkeys(wanted, value) if isinstance(value, int | float) else dict(value)
    for channel in table:
        if channel not in wanted:
            raise unknown(f"channel in {what}:", channel, wanted)
    for channel in wanted:
        if channel not in table:
            raise UserError(f"{what} names no value for channel {channel!r}; it must name each of: {', '.join(wanted)}")
        number = table[channel]
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < float("inf"):
            raise UserError(f"{what} of channel {channel!r} is {number!r}; allowed: a finite number >= 0")
    return {channel: float(table[channel]) for channel in wanted}
