"""Registries made of files: ``students/energies/NAME.py`` is the energy ``NAME``, ``students/weightings/NAME.py`` a weighting.

A new file is all it takes; names that start with an underscore are helpers. Listing imports nothing, so that recipes can be
checked without torch.
"""

from __future__ import annotations

import importlib
import inspect
import math
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


def check_options(
    kind: str, name: str, factory: Any, options: Iterable[str], given_anyway: Iterable[str] = (), also: Iterable[str] = ()
) -> None:
    """Refuse options that ``factory`` does not take, beside those that everyone of its kind takes (``also``).

    Raises:
        UserError: naming the option, the ones that exist, and near matches.
    """
    accepted = (set(inspect.signature(factory).parameters) - set(given_anyway)) | set(also)
    for option in options:
        if option not in accepted:
            raise unknown(f"option of {kind} {name!r}:", option, accepted)


def is_number(value: Any) -> bool:
    """Tell whether ``value`` is a finite int or float; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def positive(what: str, value: Any) -> float:
    """Return an option that must be a finite number above 0.

    Raises:
        UserError: naming the option and its value otherwise.
    """
    if not is_number(value) or value <= 0:
        raise UserError(f"{what} is {value!r}; allowed: a finite number > 0")
    return float(value)


def share(what: str, value: Any) -> float:
    """Return an option that must be a number in [0, 1).

    Raises:
        UserError: naming the option and its value otherwise.
    """
    if not is_number(value) or not 0 <= value < 1:
        raise UserError(f"{what} is {value!r}; allowed: a number >= 0 and < 1")
    return float(value)


def count(what: str, value: Any) -> int:
    """Return an option that must be a whole number >= 1.

    Raises:
        UserError: naming the option and its value otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{what} is {value!r}; allowed: a whole number >= 1")
    return value


def word(what: str, value: Any, known: Iterable[str]) -> str:
    """Return an option that must be one of the words ``known``.

    Raises:
        UserError: (also a ``KeyError``) naming the option, its value, the nearest word and all that are allowed.
    """
    known = tuple(known)
    if value not in known:
        raise unknown(f"{what}:", str(value), known)
    return str(value)


def per_channel(
    what: str, value: float | Mapping[str, float], channels: Iterable[str], above_zero: bool = False
) -> dict[str, float]:
    """Spread one number over ``channels``, or check a mapping that must name each of them once; all >= 0, or > 0 if asked.

    Raises:
        UserError: for a channel that is missing, unknown, negative (or 0, where that is refused) or not finite.
    """
    wanted = tuple(channels)
    table = dict(value) if isinstance(value, Mapping) else dict.fromkeys(wanted, value)
    for channel in table:
        if channel not in wanted:
            raise unknown(f"channel in {what}:", channel, wanted)
    for channel in wanted:
        if channel not in table:
            raise UserError(f"{what} names no value for channel {channel!r}; it must name each of: {', '.join(wanted)}")
        number = table[channel]
        if not is_number(number) or number < 0 or (above_zero and number == 0):
            raise UserError(
                f"{what} of channel {channel!r} is {number!r}; allowed: a finite number {'>' if above_zero else '>='} 0"
            )
    return {channel: float(table[channel]) for channel in wanted}
