"""Energies: teacher-student divergences per supervised token. One file per energy, found by its name; no torch until built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.base import UserError
from students import registry

if TYPE_CHECKING:
    from ._base import Energy


def names() -> tuple[str, ...]:
    """Names of all energies, sorted; imports none of them."""
    return registry.names("energies")


def needs(name: str) -> frozenset[str]:
    """What the energy ``name`` reads beside logits and sample numbers ("labels", names of taps), without building it.

    Raises:
        UserError: (a ``KeyError`` too) for an unknown name, with near matches.
    """
    found: frozenset[str] = registry.find("energy", "energies", "Energy", name).needs
    return found


def build(name: str, widths: Mapping[str, tuple[int, int]] | None = None, **options: Any) -> Energy:
    """Make the energy ``name``: ``energy(TokenBatch) -> [N] (or [B]) float32``, unreduced.

    Every energy over logits builds with no options.

    Args:
        name: a file in ``students/energies``.
        widths: {tap: (student, teacher)}, sizes of the last axis of the taps; passed on to the energies that have modules of
            those sizes, so that every energy can be given the same table.
        options: the energy's own, from a recipe's variant.

    Raises:
        UserError: (a ``KeyError`` too) for an unknown name or option, with near matches, for values out of range, and for an
            energy that needs a width which is not in ``widths``.
    """
    factory = registry.find("energy", "energies", "Energy", name)
    registry.check_options("energy", name, factory, options, given_anyway=("widths",))
    if "widths" in inspect.signature(factory).parameters:
        given = dict(widths or {})
        missing = sorted(factory.needs - {"labels"} - set(given))
        if missing:
            raise UserError(
                f"energy {name!r} has modules as wide as the tap(s) {', '.join(missing)}, and widths names only:"
                f" {', '.join(sorted(given)) or 'none'}"
            )
        options["widths"] = given
    energy: Energy = factory(**options)
    return energy
