"""Energies: teacher-student divergences per supervised token. One file per energy, found by its name; no torch until built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from students import registry

if TYPE_CHECKING:
    from ._base import Energy


def names() -> tuple[str, ...]:
    """Names of all energies, sorted; imports none of them."""
    return registry.names("energies")


def build(name: str, **options: Any) -> Energy:
    """Make the energy ``name``: ``energy(TokenBatch) -> [N] float32``, unreduced.

    Every energy over logits builds with no options.

    Raises:
        UserError: (a ``KeyError`` too) for an unknown name or option, with near matches, and for values out of range.
    """
    factory = registry.find("energy", "energies", "Energy", name)
    registry.check_options("energy", name, factory, options)
    energy: Energy = factory(**options)
    return energy
