"""Histograms of logits early and late in training (``snapshots.npz``), checked and brought onto common edges."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.base import UserError
from reports.frames import Irrelevant, Missing
from reports.measures import Estimates

Floats = NDArray[np.float64]
OWNERS, MOMENTS = ("student", "teacher"), ("early", "late")
#: Bins of the common edges.
BINS = 60


@dataclass(frozen=True)
class Snapshot:
    """One student's histograms, its seeds pooled.

    Attributes:
        steps: at which optimiser steps "early" and "late" are, one entry per seed; counts: logits by (owner, moment), the
            teacher's only where the student met one;
        density: by (owner, moment), float64 [BINS], per unit of logit, integrating to the share within the common edges.
    """

    steps: dict[str, tuple[int, ...]]
    counts: dict[tuple[str, str], int]
    density: dict[tuple[str, str], Floats]


@dataclass(frozen=True)
class Snapshots:
    """All students' histograms over common ``edges``, float64 [BINS + 1]: those within which 99.9 % of every one lies."""

    edges: Floats
    students: dict[str, Snapshot]


def snapshots(estimates: Estimates) -> Snapshots:
    """Return every trained student's histograms.

    Raises:
        Missing: where no training left any. UserError: naming a file that is damaged.
    """
    return estimates.once("snapshots", lambda: _snapshots(estimates))


def _snapshots(estimates: Estimates) -> Snapshots:
    run = estimates.run
    if not run.manifest.students:
        raise Irrelevant("Nothing was trained in this run.")
    found: dict[str, list[dict[str, Floats]]] = {}
    for student in run.manifest.students:
        files = [folder / "snapshots.npz" for _, folder in run.seed_folders(student)]
        read = [_read(path) for path in files if path.is_file()]
        if read:
            found[student] = read
    if not found:
        raise Missing("The run holds no snapshots.npz: no logits were kept early and late in training.")
    everything = [table for tables in found.values() for table in tables]
    low = min(_quantile(table, key, 0.0005) for table in everything for key in _keys(table))
    high = max(_quantile(table, key, 0.9995) for table in everything for key in _keys(table))
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    return Snapshots(edges, {student: _pooled(tables, edges) for student, tables in found.items()})


def _owners(table: Collection[str]) -> list[str]:
    """Whose logits a file holds: a student that met no teacher, such as ``ce`` beside a live one, has its own alone."""
    return [owner for owner in OWNERS if owner == "student" or any(name.startswith(f"{owner}_") for name in table)]


def _keys(table: Collection[str]) -> list[str]:
    return [f"{owner}_{moment}" for owner in _owners(table) for moment in MOMENTS]


def _read(path: Path) -> dict[str, Floats]:
    """Read one file; edges must rise, counts must fit between them and hold something."""
    try:
        with np.load(path, allow_pickle=False) as file:
            table = {name: np.asarray(file[name], dtype=np.float64) for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged: not readable as NumPy arrays ({reason}). Remove it and run again") from error
    wanted = ["edges", *(f"{moment}_step" for moment in MOMENTS), *_keys(table)]
    lost = [name for name in wanted if name not in table]
    if lost:
        raise UserError(f"{path} lacks {', '.join(lost)}; it holds {', '.join(table)}")
    edges = table["edges"]
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise UserError(f"{path}: its edges do not rise")
    for key in _keys(table):
        counts = table[key]
        if counts.shape != (len(edges) - 1,) or not (counts >= 0).all() or counts.sum() == 0:
            raise UserError(f"{path}: {key} is no histogram over its {len(edges) - 1} bins")
    return table


def _cumulated(table: dict[str, Floats], key: str) -> Floats:
    """Share of the logits below each edge."""
    return np.asarray(np.concatenate([[0.0], np.cumsum(table[key])]) / table[key].sum())


def _quantile(table: dict[str, Floats], key: str, share: float) -> float:
    return float(np.interp(share, _cumulated(table, key), table["edges"]))


def _pooled(tables: list[dict[str, Floats]], edges: Floats) -> Snapshot:
    """Average the seeds' distribution functions at the common edges; within a bin logits are taken to be even."""
    density, counts = {}, {}
    for owner in [owner for owner in OWNERS if all(owner in _owners(table) for table in tables)]:
        for moment in MOMENTS:
            key = f"{owner}_{moment}"
            below = np.mean([np.interp(edges, t["edges"], _cumulated(t, key)) for t in tables], axis=0)
            density[owner, moment] = np.diff(below) / np.diff(edges)
            counts[owner, moment] = int(sum(t[key].sum() for t in tables))
    steps = {moment: tuple(int(t[f"{moment}_step"]) for t in tables) for moment in MOMENTS}
    return Snapshot(steps, counts, density)
