"""Simulated benchmarks of the official shapes whose true number is known, as per-cluster sums: what coverage is measured on.

Shapes: GQA testdev 12,578 questions on 398 images; POPE 9,000 questions on 500 images in 3 splits; ScienceQA-IMG 2,017
questions; TextVQA validation 5,000 questions on 3,166 images; MMBench dev 1,164 groups; MME 1,187 pairs in 14 categories.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from reports.resampling import Bootstrap, bootstrap_tables
from tasks.aggregate import ClusterSums, cluster_sums

#: MME's pairs per category (perception's ten, cognition's four).
MME = {
    "existence": 30, "count": 30, "position": 30, "color": 30, "posters": 147, "celebrity": 170, "scene": 200,
    "landmark": 200, "artwork": 200, "OCR": 20, "commonsense_reasoning": 70, "numerical_calculation": 20,
    "text_translation": 20, "code_reasoning": 20,
}  # fmt: skip
#: How often a good student is right, by MME category: near the ceiling where the real ones are.
_MME_RIGHT = {"existence": 0.96, "color": 0.9, "count": 0.8, "code_reasoning": 0.55, "numerical_calculation": 0.5}


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def _gqa(rng: np.random.Generator, clusters: int, skill: float) -> np.ndarray:
    """[score, questions] of images with 32 questions on average and a shared difficulty."""
    n = 1 + rng.poisson(30.6, clusters)
    return np.stack([rng.binomial(n, _logistic(0.5 + skill + rng.normal(0, 0.6, clusters))), n], axis=1).astype(float)


def _textvqa(rng: np.random.Generator, clusters: int, skill: float) -> np.ndarray:
    """[soft score, questions] of images with 1 to 4 questions."""
    n = rng.choice([1, 2, 3, 4], clusters, p=[0.6, 0.27, 0.08, 0.05])
    p = _logistic(0.1 + skill + rng.normal(0, 1.0, clusters))
    parts = np.array([0.0, 0.3, 0.6, 0.9])
    sums = np.zeros(clusters)
    for k in range(4):
        soft = np.where(rng.random(clusters) < p, np.where(rng.random(clusters) < 0.75, 1.0, 0.9), rng.choice(parts, clusters))
        sums += np.where(k < n, soft, 0.0)
    return np.stack([sums, n.astype(float)], axis=1)


def _single(right: float) -> Callable[[np.random.Generator, int, float], np.ndarray]:
    """[right, 1] of independent units."""

    def draw(rng: np.random.Generator, clusters: int, skill: float) -> np.ndarray:
        p = _logistic(np.log(right / (1 - right)) + skill)
        return np.stack([(rng.random(clusters) < p).astype(float), np.ones(clusters)], axis=1)

    return draw


def _pope(rng: np.random.Generator, clusters: int, skill: float) -> np.ndarray:
    """[tp, fp, fn, n] in three splits: three yes and three no questions each per image, negatives ever harder."""
    ease = rng.normal(0, 0.8, clusters)
    parts = []
    for level in (2.6, 2.0, 1.5):
        tp = rng.binomial(3, _logistic(1.9 + skill + ease))
        fp = rng.binomial(3, 1 - _logistic(level + skill + ease))
        parts.append(np.stack([tp, fp, 3 - tp, np.full(clusters, 6)], axis=1))
    return np.concatenate(parts, axis=1).astype(float)


def _mme(rng: np.random.Generator, clusters: int, skill: float) -> np.ndarray:
    """[right, both right, pairs] per category; the two questions of a pair share their difficulty."""
    out = np.zeros((clusters, 3 * len(MME)))
    names = sorted(MME)
    shares = np.array([MME[n] for n in names]) / sum(MME.values())
    sizes = np.maximum(2, np.round(shares * clusters).astype(int))
    sizes[int(np.argmax(sizes))] += clusters - sizes.sum()
    start = 0
    for k, (name, size) in enumerate(zip(names, sizes, strict=True)):
        p = _MME_RIGHT.get(name, 0.75)
        right = rng.binomial(2, _logistic(np.log(p / (1 - p)) + skill + rng.normal(0, 0.8, size)))
        out[start : start + size, 3 * k : 3 * k + 3] = np.stack([right, right == 2, np.ones(size)], axis=1)
        start += size
    return out


#: benchmark -> (aggregation, official clusters, sums of simulated clusters).
POPULATIONS: dict[str, tuple[str, int, Callable[[np.random.Generator, int, float], np.ndarray]]] = {
    "gqa": ("mean", 398, _gqa),
    "pope": ("pope_mean_f1", 500, _pope),
    "mme": ("mme", sum(MME.values()), _mme),
    "mmbench": ("mmbench_circular", 1164, _single(0.62)),
    "scienceqa": ("mean", 2017, _single(0.68)),
    "textvqa": ("mean", 3166, _textvqa),
}


def template(aggregation: str) -> ClusterSums:
    """A real table of the aggregation, for its ``value``."""
    groups = {"mme": sorted(MME), "pope_mean_f1": ["adversarial", "popular", "random"]}.get(aggregation, ["all"])
    rows = [
        {"id": f"{g}{k}", "cluster": g, "group": g, "gold": "yes", "prediction": "yes", "score": 1.0}
        for g in groups
        for k in range(2)
    ]
    return cluster_sums(pd.DataFrame(rows), aggregation)


def table(aggregation: str, sums: np.ndarray) -> ClusterSums:
    """Simulated sums as a table; MME's strata are its categories."""
    strata = sums[:, 2::3].argmax(axis=1) if aggregation == "mme" else np.zeros(len(sums), dtype=np.int64)
    return ClusterSums([str(k) for k in range(len(sums))], sums, template(aggregation).value, strata.astype(np.int64))


def truth(name: str, skill: float = 0.0, clusters: int = 400_000) -> float:
    """The number of the whole population."""
    aggregation, _, draw = POPULATIONS[name]
    return float(template(aggregation).value(draw(np.random.default_rng(99), clusters, skill).sum(axis=0)))


def sampled(name: str, trainings: list[np.ndarray], resamples: int, seed: int) -> Bootstrap:
    """A bootstrap over simulated sums, one array per training."""
    aggregation = POPULATIONS[name][0]
    tables = {k if len(trainings) > 1 else None: table(aggregation, sums) for k, sums in enumerate(trainings)}
    questions = pd.Series(np.zeros(len(trainings[0])))
    return bootstrap_tables(tables, questions, f"{name}@simulated", resamples, seed)
