"""A student's name is its recipe: ``channel(+channel)*[@weighting[@variant]]``, one spelling each. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pydantic

from harness.base import Strict, UserError, unknown

from . import registry

#: Short words for weightings in recipes; every other weighting goes by its file name.
SHORT = {"task": "beta_task", "instance": "beta_instance"}
#: Rows of the tables that no recipe may be called.
RESERVED = ("teacher", "base")
_LONG = {long: short for short, long in SHORT.items()}
_WORD = re.compile(r"[a-z0-9_.-]+")


class Variant(Strict):
    """Options that a recipe's third part names: the schema of ``harness/presets/variants/NAME.yaml``."""

    description: str = ""
    weighting: dict[str, Any] = pydantic.Field(default_factory=dict)
    energies: dict[str, dict[str, Any]] = pydantic.Field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """What one student is trained on.

    Attributes:
        name: canonical spelling: ``ce`` first, then the other channels by alphabet, then weighting and variant.
        channels: the terms of the loss, in the order of the name.
        weighting: file name in ``students/weightings``, or None for one channel alone (total = mean of its loss).
        variant: name of a set of options, or None.
    """

    name: str
    channels: tuple[str, ...]
    weighting: str | None
    variant: str | None

    @property
    def energies(self) -> tuple[str, ...]:
        """The channels that compare with a teacher: all but ``ce``."""
        return tuple(c for c in self.channels if c != "ce")

    def __str__(self) -> str:
        return self.name


def channel_words() -> tuple[str, ...]:
    """Words allowed as channels: ``ce`` and every file in ``students/energies``."""
    return ("ce", *registry.names("energies"))


def weighting_words() -> tuple[str, ...]:
    """Words allowed after the first ``@``, as recipes spell them."""
    return tuple(sorted(_LONG.get(name, name) for name in registry.names("weightings")))


def parse(text: str, variants: Iterable[str] | None = None) -> Recipe:
    """Read a recipe; ``fkl+ce`` and ``ce+fkl@fixed`` give the same one.

    Args:
        text: for instance ``ce``, ``ce+fkl@task`` or ``ce+fkl@fixed@lambda4``.
        variants: known names of variants, or None to accept any well-formed one.

    Raises:
        UserError: naming what is wrong with ``text``, and the nearest known word for an unknown one.
    """
    head, *rest = text.split("@")
    if text in RESERVED:
        raise UserError(f"{text!r} is no recipe: it names a row of the tables. Reserved: {', '.join(RESERVED)}")
    if len(rest) > 2:
        raise UserError(f"recipe {text!r} has {len(rest)} '@'; the form is channel(+channel)*[@weighting[@variant]]")
    for word in [*head.split("+"), *rest]:
        if not _WORD.fullmatch(word):
            raise UserError(f"recipe {text!r} has a malformed word {word!r}; allowed: one or more of a-z 0-9 _ . -")
    channels = _channels(text, head.split("+"))
    weighting: str | None = _weighting(text, channels, rest)
    variant = rest[1] if len(rest) == 2 else None
    if variant is not None and variants is not None and variant not in (known := tuple(variants)):
        raise unknown(f"variant in recipe {text!r}:", variant, known)
    if len(channels) == 1 and variant is None:
        weighting = None  # `fkl` and `fkl@fixed` are one recipe, and the short spelling is its name
    parts = ["+".join(channels)]
    if weighting is not None:
        parts.append(_LONG.get(weighting, weighting))
    if variant is not None:
        parts.append(variant)
    return Recipe("@".join(parts), channels, weighting, variant)


def _channels(text: str, words: list[str]) -> tuple[str, ...]:
    """Check the channel words and put them into canonical order."""
    for word in words:
        if word not in channel_words():
            raise unknown(f"channel in recipe {text!r}:", word, channel_words())
        if words.count(word) > 1:
            raise UserError(f"recipe {text!r} names channel {word!r} twice; each channel is allowed once")
    return tuple(sorted(words, key=lambda word: (word != "ce", word)))


def _weighting(text: str, channels: tuple[str, ...], rest: list[str]) -> str:
    """Resolve the weighting word to a file name."""
    word = rest[0] if rest else "fixed"
    name = SHORT.get(word, word)
    if name not in registry.names("weightings"):
        raise unknown(f"weighting in recipe {text!r}:", word, weighting_words())
    if len(channels) == 1 and name != "fixed":
        raise UserError(f"recipe {text!r}: {channels[0]!r} alone has nothing to be balanced against; write {channels[0]!r}")
    return name
