"""How much worse than its baseline a run may be: a YAML file of margins, in percent of each protocol's range."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

import tasks
from harness.base import Strict, UserError, read_yaml, unknown

DEFAULT = Path(__file__).with_name("margins.yaml")

Kind = Literal["given", "trained"]
Percent = Annotated[float, Field(gt=0, le=100)]


class Margin(Strict):
    """Margins of one benchmark or protocol, in percent of its range; None: look further."""

    given: Percent | None = None
    trained: Percent | None = None


class Default(Strict):
    """Margins of what has none of its own."""

    given: Percent
    trained: Percent


class Margins(Strict):
    """A file of margins; see ``harness/margins.yaml``.

    Attributes:
        alpha: one-sided level of all comparisons of a gate together.
        default, benchmarks, protocols: margins, the most particular counts.
    """

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.025
    default: Default
    benchmarks: dict[str, Margin] = Field(default_factory=dict)
    protocols: dict[str, Margin] = Field(default_factory=dict)

    def percent(self, protocol: tasks.Protocol, kind: Kind) -> float:
        """Return the margin of a protocol in percent of its range."""
        own = (self.protocols.get(protocol.name), self.benchmarks.get(protocol.benchmark))
        found = [getattr(entry, kind) for entry in own if entry is not None]
        return float(next((value for value in found if value is not None), getattr(self.default, kind)))

    def of(self, protocol: tasks.Protocol, kind: Kind) -> float:
        """Return the margin of a protocol in its own unit (percent points, MME points)."""
        low, high = protocol.range
        return self.percent(protocol, kind) / 100.0 * (high - low)


def load(path: Path | None = None) -> Margins:
    """Read a file of margins, by default the one that ships.

    Raises:
        UserError: no such file, a field that breaks the schema, a protocol or benchmark that does not exist.
    """
    path = path or DEFAULT
    if not path.is_file():
        raise UserError(f"margins file {path} does not exist")
    margins = read_yaml(path, Margins)
    known = tasks.names()
    for name in margins.protocols:
        if name not in known:
            raise unknown(f"protocol in {path}:", name, known)
    benchmarks = {name.partition("@")[0] for name in known}
    for name in margins.benchmarks:
        if name not in benchmarks:
            raise unknown(f"benchmark in {path}:", name, benchmarks)
    return margins
