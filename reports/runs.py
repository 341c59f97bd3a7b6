"""Several runs in one report: what may stand side by side, and how tables of single runs become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from harness.base import UserError, parse, read_json
from reports import frames
from reports.cells import Column, Row, Table
from reports.frames import Manifest, Run

_BLOCKS = ("reference", "given")


def load(folders: Sequence[Path]) -> list[Run]:
    """Read run folders that are to stand side by side; a single one as :func:`reports.frames.load`.

    Raises:
        UserError: a folder that is no run or named twice, a damaged file, one protocol in two versions, or runs on questions
            that must not be put beside each other (the miniature suite beside official ones).
    """
    places = [Path(folder).resolve() for folder in folders]
    for place in places:
        if places.count(place) > 1:
            raise UserError(f"--run {place} is given twice; a run stands beside other runs")
    if len(places) == 1:
        return [frames.load(Path(folders[0]))]
    manifests = [_manifest(place) for place in places]
    names = _names(places)
    _one_version(names, manifests)
    runs = [dataclasses.replace(frames.load(p), label=name) for p, name in zip(places, names, strict=True)]
    suites = {run.name: run.suite or "official protocols" for run in runs}
    if len(set(suites.values())) > 1:
        said = ", ".join(f"{name}: {suite}" for name, suite in suites.items())
        raise UserError(f"these runs must not stand in one report, their questions differ in kind ({said})")
    return runs


def _manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a run folder: it holds no manifest.json")
    return parse(Manifest, read_json(path), str(path))


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    depth = 1
    while len({p.parts[-depth:] for p in places}) < len(places):
        depth += 1
    return ["/".join(p.parts[-depth:]) for p in places]


def _one_version(names: Sequence[str], manifests: Sequence[Manifest]) -> None:
    seen: dict[str, tuple[int, str]] = {}
    for name, manifest in zip(names, manifests, strict=True):
        for protocol, record in manifest.protocols.items():
            version, first = seen.setdefault(protocol, (record.version, name))
            if version != record.version:
                raise UserError(
                    f"{first} was scored under {protocol} version {version} and {name} under version {record.version}: "
                    "they cannot stand in one column. Score one of them again, or report them apart"
                )


# ---- tables ----------------------------------------------------------------------------------------------------------------


def merge(tables: Sequence[Table]) -> Table:
    """Put one layout's tables of several runs into one: a student's rows stand together, one per run.

    Columns are those of all; where a run has none, its cell is a dash. A note that is true of one run alone names it.
    """
    first = tables[0]
    if len(tables) == 1:
        return first
    columns: dict[tuple[str, str, str], Column] = {}
    for table in tables:
        for column in table.columns:
            key = _key(column)
            columns[key] = _either(columns[key], column) if key in columns else column
    rows: dict[tuple[str, str, str | None, str], list[Row]] = {}
    for table in tables:
        for row in table.rows:
            cells = dict(zip(map(_key, table.columns), row.cells, strict=True))
            moved = dataclasses.replace(row, cells=tuple(cells.get(key) for key in columns))
            rows.setdefault((row.block if row.block in _BLOCKS else "", row.label, row.minus, row.about), []).append(moved)
    order = sorted(rows, key=lambda key: (*_BLOCKS, "").index(key[0]))
    origins = tuple(dict.fromkeys(o for table in tables for o in table.origins))
    return dataclasses.replace(
        first,
        notes=_notes(tables),
        columns=tuple(columns.values()),
        rows=tuple(row for key in order for row in rows[key]),
        origins=origins,
    )


def _key(column: Column) -> tuple[str, str, str]:
    return column.label, column.name, column.over if column.protocol is None else column.protocol.name


def _either(one: Column, other: Column) -> Column:
    """A column's head for both; what differs (how many questions were asked) is said of each."""
    under = one.under if other.under in one.under else f"{one.under} / {other.under}"
    return dataclasses.replace(one, under=under)


def _notes(tables: Sequence[Table]) -> tuple[str, ...]:
    out: dict[str, None] = {}
    every = [set(table.notes) for table in tables]
    for table in tables:
        sources = {origin.sentence for origin in table.origins}
        for note in table.notes:
            if note in sources or all(note in notes for notes in every):
                out[note] = None
            else:
                out[f"{' and '.join(f'`{o.run}`' for o in table.origins)}: {note}"] = None
    last = [note for note in out if any(note == o.sentence for table in tables for o in table.origins)]
    return (*(note for note in out if note not in last), *last)
