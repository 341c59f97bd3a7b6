"""Derived scores: a number made of several protocols' numbers. Each is one YAML file in this folder, found by its name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import pydantic

from harness.base import Strict, UserError, read_yaml, unknown
from tasks import catalogue

FOLDER = Path(__file__).parent


class Derived(Strict):
    """A weighted mean of protocols' numbers.

    Attributes:
        name: ``average@...``, also the file's name.
        title, description: for tables and captions.
        sources: where it is published.
        terms: protocol -> factor of its number (in the protocol's own unit).
        divide: what the sum is divided by.
        unit, range, direction: of the sum.
    """

    name: str = pydantic.Field(pattern=r"^[a-z0-9_]+@[a-z0-9_.\-]+$")
    title: str
    description: str
    sources: tuple[str, ...]
    terms: Mapping[str, float]
    divide: float = pydantic.Field(gt=0)
    unit: Literal["percent"]
    range: tuple[float, float]
    direction: Literal["higher"]

    def value(self, numbers: Mapping[str, float]) -> float:
        """Return the score made of protocols' numbers.

        Raises:
            UserError: when a protocol's number is missing or not finite, another protocol of one of its benchmarks stands in
                for it, or a number belongs to none of the terms.
        """
        for name, number in numbers.items():
            if name not in self.terms:
                meant = [term for term in self.terms if term.split("@")[0] == name.split("@")[0]]
                if meant:
                    raise UserError(f"{self.name} takes {meant[0]}, not {name}: two protocols of one benchmark are never mixed")
                raise unknown(f"term of {self.name}", name, self.terms)
            if not math.isfinite(number):
                raise UserError(f"{self.name}: {name} is {number}, expected a finite number")
        missing = [name for name in self.terms if name not in numbers]
        if missing:
            raise UserError(f"{self.name} lacks {', '.join(missing)}")
        return math.fsum(factor * numbers[name] for name, factor in self.terms.items()) / self.divide


def derived_names() -> list[str]:
    """Return the names of the derived scores: the YAML files of this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def derived(name: str) -> Derived:
    """Return the derived score called ``name``.

    Raises:
        UnknownName: for an unknown name.
        UserError: for a file that breaks the schema, names an unknown protocol, or two protocols of one benchmark.
    """
    if name not in derived_names():
        raise unknown("derived score", name, derived_names())
    path = FOLDER / f"{name}.yaml"
    found = read_yaml(path, Derived)
    if found.name != name:
        raise UserError(f"{path}: name is {found.name!r}; the file name says {name!r}")
    for term in found.terms:
        catalogue.protocol(term)
    one_of_each(found.terms)
    return found


def one_of_each(protocols: Iterable[str]) -> None:
    """Raise :class:`UserError` where two protocols of one benchmark are named."""
    seen: dict[str, str] = {}
    for name in protocols:
        first = seen.setdefault(name.split("@")[0], name)
        if first != name:
            raise UserError(f"{first} and {name} are two protocols of one benchmark: they are never mixed in one column")


def one_column(protocols: Iterable[str]) -> str:
    """Return the one protocol that all of a column's numbers were scored under.

    Raises:
        UserError: for two protocols of one benchmark, numbers of several benchmarks, or no number at all.
    """
    names = sorted(set(protocols))
    one_of_each(names)
    if len(names) != 1:
        raise UserError(f"a column holds the numbers of one protocol, got {', '.join(names) or 'none'}")
    return names[0]
