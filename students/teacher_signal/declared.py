"""What energies declare, read from their files: importing them would import torch, and plans are made without it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from students import registry
from students.recipe import Variant

_TAPS = frozenset({"attention", "vision", "vision_logits"})
#: Taps that are kept on disk; see :mod:`students.teacher_signal.kept`.
KEPT = frozenset({"vision"})


@dataclass(frozen=True)
class Declared:
    """What of a teacher an energy reads.

    Attributes:
        taps: beside its distributions.
        bins: whether bins over its likeliest tokens will do, with the energy's usual options.
        by_tokens: whether some of the tokens may be compared without the others (:attr:`students.losses.Losses.by_tokens`).
    """

    taps: frozenset[str]
    bins: bool
    by_tokens: bool = True


@functools.cache
def declared(name: str) -> Declared:
    """Return what ``students/energies/NAME.py`` declares on its class.

    Raises:
        UserError: (a ``KeyError`` too) for an unknown name.
    """
    path = registry.ROOT / "energies" / f"{name}.py"
    if name not in registry.names("energies"):
        registry.find("energy", "energies", "Energy", name)  # raises
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Energy")
    said = {
        target.id: node.value
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    words = {c.value for c in ast.walk(said["needs"]) if isinstance(c, ast.Constant)} if "needs" in said else set()
    samples = _constant(said, "level") == "sample" and _constant(said, "reads_logits") is not False
    return Declared(frozenset(str(word) for word in words) & _TAPS, _constant(said, "bins") is not False, not samples)


def _constant(said: Mapping[str, ast.expr], name: str) -> object:
    """Return a constant that a class sets, None where it does not."""
    value = said.get(name)
    return value.value if isinstance(value, ast.Constant) else None


def taps(energies: Iterable[str]) -> frozenset[str]:
    """Return the taps that some energies read."""
    return frozenset().union(*(declared(name).taps for name in energies))


def whole(energies: Iterable[str], variant: Variant | None) -> list[str]:
    """Return those of some energies that need a teacher's whole distributions; a bin of many tokens has no temperature."""
    options = {} if variant is None else variant.energies
    return [name for name in energies if not declared(name).bins or options.get(name, {}).get("temperature", 1) != 1]
