"""Sentences that captions share: how many trainings, steps and questions there are, and what is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reports.measures import Estimates
from reports.statistics import Difference, Interval


def trainings(estimates: Estimates) -> str:
    """How many steps and seeds the logged trainings have, and which students of the run have none."""
    run = estimates.run
    frame = run.dynamics
    seeds = frame.groupby("student")["seed"].nunique()
    steps = frame.groupby(["student", "seed"])["step"].nunique()
    absent = [s for s in run.manifest.students if s not in seeds.index]
    text = f"n = {span(steps)} optimiser steps per training, {seeds_told(seeds)} per student; no intervals of sampling."
    return text + (f" Without a log, and not drawn: {', '.join(absent)}." if absent else "")


def questions(found: Iterable[Interval | Difference], level: float) -> str:
    """How many questions, clusters and seeds stand behind numbers, and what their bars are."""
    results = list(found)
    seeds = {n for e in results for n in (e.seeds if isinstance(e, Difference) else (e.seeds,))}
    made = " or ".join(sorted({e.method for e in results} - {"none"}))
    covered = "" if seeds - {1} else "not "
    bars = "no interval can be given"
    if made:
        bars = f"bars: {100 * level:g} % intervals ({made}), which do {covered}cover the variation between trainings"
    return (
        f"n = {span(e.n for e in results)} questions in {span(e.clusters for e in results)} clusters, "
        f"{seeds_told(seeds)}; {bars}."
    )


def unroomy(names: Sequence[str]) -> list[str]:
    """What is left out for want of room, in words; empty where nothing is."""
    return [f"Not drawn, for want of room: {', '.join(names)}."] if names else []


def seeds_told(values: Iterable[int]) -> str:
    """Numbers of seeds in words: ``1 seed``, ``1 to 3 seeds`` (a given model has one)."""
    found = {int(v) for v in values}
    return f"{span(found)} seed{'s' if found != {1} else ''}"


def span(values: Iterable[int]) -> str:
    """Numbers in words: ``3,700``, or ``400 to 3,700``."""
    found = sorted({int(v) for v in values})
    if not found:
        return "0"
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"
