"""Writes a run folder as the harness would: numbers drawn from a seeded simulator, never shipped and never a result."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from harness import base

STUDENTS = [
    "ce",
    "ce+fkl@fixed",
    "ce+fkl@task",
    "ce+fkl@instance",
    "ce+cosine_probs@fixed",
    "ce+cosine_probs@task",
    "ce+cosine_probs@instance",
    "ce+fkl@fixed@lambda0.3",
    "ce+fkl@fixed@lambda4",
    "fkl",
]
BENCHMARKS = ["scienceqa", "gqa", "textvqa", "pope", "mmbench", "mme"]
PROTOCOLS = [f"{name}@miniature" for name in BENCHMARKS]
#: logits by which a student is better than the base
GAIN = {
    "teacher": 1.6,
    "base": 0.0,
    "ce": 0.25,
    "ce+fkl@fixed": 0.5,
    "ce+fkl@task": 0.6,
    "ce+fkl@instance": 0.55,
    "ce+cosine_probs@fixed": 0.4,
    "ce+cosine_probs@task": 0.45,
    "ce+cosine_probs@instance": 0.2,
    "ce+fkl@fixed@lambda0.3": 0.3,
    "ce+fkl@fixed@lambda4": 0.65,
    "fkl": 0.6,
}
#: A planted run's students, with the logits by which they are better: half way, nothing, the wrong way.
PLANTED = {
    "ce": 0.25,
    "ce+fkl@fixed": 0.3,
    "ce+fkl@fixed@lambda10": 0.1,
    "fkl": 0.15,
    "ce+fkl@task": 0.32,
    "ce+fkl@instance@teacher-gate": 0.55,
    "ce+fkl@instance@teacher-gate-ce": 0.5,
    "ce+fkl@analytic": 0.4,
    "ce+fkl@oracle": 0.85,
}
CATEGORIES = ["existence", "count", "position", "color", "OCR", "numerical_calculation", "commonsense_reasoning"]


def gain(student: str) -> float:
    """Logits by which a student is better than the base."""
    if student in GAIN:
        return GAIN[student]
    return PLANTED.get(student, 0.2 + 0.05 * (zlib.crc32(student.encode()) % 10))


def fixed_weight(weighting: str) -> float:
    """The weight that a variant's name says."""
    return float(weighting.partition("lambda")[2] or 1.0)


def questions(benchmark: str, clusters: int, rng: np.random.Generator) -> pd.DataFrame:
    """Questions of one benchmark in clusters of the shape that its aggregation needs."""
    size = {"mme": 2, "mmbench": 4, "pope": 6}.get(benchmark, 3)
    rows = []
    for c in range(clusters):
        for k in range(size):
            group, gold = "all", str(rng.choice(["red circle", "blue square", "42", "BOAT"]))
            if benchmark == "mme":
                group, gold = CATEGORIES[c % len(CATEGORIES)], ["Yes", "No"][k]
            if benchmark == "pope":
                group, gold = ["random", "popular", "adversarial"][k // 2], ["yes", "no"][k % 2]
            if benchmark == "mmbench":
                group = ["attribute_recognition", "object_localization", "spatial_relationship"][c % 3]
            if benchmark in ("mmbench", "scienceqa"):
                gold = "ABCD"[(c + k) % 4]
            rows.append(
                {
                    "id": f"{benchmark}-{c:04d}-{k}",
                    "cluster": f"{benchmark}-{c:04d}",
                    "group": group,
                    "image": f"{c % 24:016x}",
                    "prompt": f"What is at {k}? <script>alert('{benchmark}')</script> & 100 % of _{c}_ | ok\nAnswer briefly.",
                    "gold": gold,
                }
            )
    return pd.DataFrame(rows)


def write_run(
    folder: Path, seeds: tuple[int, ...] = (0,), clusters: int = 120, students: list[str] | None = None, steps: int = 200
) -> Path:
    """Write every file of the contract below ``folder``; ``students`` defaults to the default preset's."""
    students = STUDENTS if students is None else students
    rng = np.random.default_rng(7)
    asked = {name: questions(name, clusters, rng) for name in BENCHMARKS}
    _manifest(folder, students, seeds, asked)
    scores, diagnostics = [], []
    for benchmark, frame in asked.items():
        hard = rng.normal(0.0, 1.0, len(frame)) + np.repeat(
            rng.normal(0, 0.8, frame["cluster"].nunique()), frame.groupby("cluster").size()
        )
        for student in ["teacher", "base", *students]:
            given = student in ("teacher", "base")
            for seed in (None,) if given else seeds:
                noise = rng.normal(0.0, 0.9, len(frame))
                logit = 0.7 + gain(student) - hard + noise
                right = logit > 0.0
                wrong = np.where(frame["gold"].str.lower() == "yes", "no", "Yes" if benchmark == "mme" else "yes")
                prediction = np.where(right, frame["gold"], wrong if benchmark in ("mme", "pope") else "C")
                hit = (prediction == frame["gold"].to_numpy()).astype(float)
                scores.append(
                    frame[["id", "cluster", "group", "gold"]].assign(
                        student=student,
                        kind=student if given else "student",
                        seed=seed,
                        protocol=f"{benchmark}@miniature",
                        protocol_version=1,
                        prediction=prediction,
                        score=hit,
                        unparseable=False,
                    )
                )
                nll = np.log1p(np.exp(-logit)) * 0.8
                apart = np.abs(1.6 - gain(student)) * rng.gamma(2.0, 0.1, len(frame))
                diagnostics.append(
                    pd.DataFrame(
                        {
                            "student": student,
                            "seed": seed,
                            "protocol": f"{benchmark}@miniature",
                            "id": frame["id"],
                            "nll": nll,
                            "confidence": 1.0 / (1.0 + np.exp(-np.abs(logit))),
                            "entropy": rng.gamma(2.0, 0.2, len(frame)),
                            "teacher_agrees": None if student == "teacher" else (rng.random(len(frame)) < 0.95 - apart),
                            "teacher_kl": np.nan if student == "teacher" else apart,
                        }
                    )
                )
                _replies(folder, student, seed or 0, benchmark, frame, prediction)
    _parquet(pd.concat(scores, ignore_index=True).astype({"seed": "Int64"}), folder / "scores.parquet")
    joined = pd.concat(diagnostics, ignore_index=True).astype({"seed": "Int64", "teacher_agrees": "boolean"})
    _parquet(joined, folder / "diagnostics.parquet")
    for benchmark, frame in asked.items():
        _parquet(frame, folder / "questions" / f"{benchmark}@miniature.parquet")
    _images(folder / "images", rng)
    for student in students:
        for seed in seeds:
            _training(folder / "students" / student / f"seed{seed}", student, steps, rng)
    return folder


def _parquet(frame: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(path)


def _manifest(folder: Path, students: list[str], seeds: tuple[int, ...], asked: dict[str, pd.DataFrame]) -> None:
    constant = {"pope": ("yes", 50.0), "mme": ("Yes", 350.0), "mmbench": ("A", 0.0)}
    protocols = {
        f"{name}@miniature": {
            "version": 1,
            "digest": base.digest(name),
            "rows": len(frame),
            "constant": dict(zip(("answer", "value"), constant.get(name, ("C", 26.0)), strict=True)),
        }
        for name, frame in asked.items()
    }
    base.write_json(
        folder / "manifest.json",
        {
            "preset": {
                "name": "simulated",
                "title": "Simulated run",
                "description": "Numbers drawn by a test, to look at the report.",
                "protocols": list(protocols),
                "recipes": students,
                "seeds": list(seeds),
                "data": {"label_noise": 0.25, "blindness": 0.0, "images": 1200, "seed": 0},
            },
            "students": students,
            "seeds": list(seeds),
            "protocols": protocols,
            "versions": {"python": "3.11.2", "torch": "2.13.0", "lmms-eval": "0.7.3", "transformers": "5.17.0"},
            "git_commit": "0" * 40,
            "hardware": {"machine": "x86_64", "cores": 2, "memory_gib": 24},
            "threads": 1,
            "weights": {"teacher": "ab" * 32, "base": "cd" * 32, "tower": "ef" * 32},
            "overrides": {},
            "command": "python -m harness.run --students all",
        },
    )


def _replies(folder: Path, student: str, seed: int, benchmark: str, frame: pd.DataFrame, prediction: np.ndarray) -> None:
    rows = [
        {"id": i, "cluster": c, "group": g, "prompt_sha256": "0" * 64, "reply": str(p), "tokens": 2}
        for i, c, g, p in zip(frame["id"], frame["cluster"], frame["group"], prediction, strict=True)
    ]
    base.write_jsonl(folder / "replies" / student / f"seed{seed}" / f"{benchmark}@miniature.jsonl", rows)


def _images(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(24):
        pixels = np.full((60, 60, 3), 235, dtype=np.uint8)
        for _ in range(3):
            x, y = rng.integers(0, 45, 2)
            pixels[y : y + 14, x : x + 14] = rng.integers(0, 255, 3)
        Image.fromarray(pixels).save(folder / f"{k:016x}.png")


def _training(folder: Path, student: str, steps: int, rng: np.random.Generator) -> None:
    channels, _, weighting = student.partition("@")
    names = channels.split("+")
    other = [c for c in names if c != "ce"]
    folder.mkdir(parents=True, exist_ok=True)
    lines, betas = [], []
    ids = [f"train-{k:04d}" for k in range(600)]
    noisy, wrong = rng.random(600) < 0.25, rng.random(600) < 0.3
    taste = rng.normal(0.0, 0.5, 600) - 0.6 * wrong
    fixed = fixed_weight(weighting)
    for step in range(steps):
        done = step / steps
        loss = {"ce": 0.9 + 1.2 * np.exp(-4 * done) + rng.normal(0, 0.05)} if "ce" in names else {}
        loss |= {c: (0.15 + 0.8 * np.exp(-5 * done)) * np.exp(rng.normal(0, 0.1)) for c in other}
        weight = {c: 1.0 if c == "ce" else (fixed if weighting.startswith("fixed") else np.exp(1.2 * done)) for c in names}
        lines.append(
            {
                "step": step,
                "loss": loss,
                "weight": weight,
                "weighted": {c: weight[c] * loss[c] for c in names},
                "regulariser": -0.5,
                "total": sum(weight[c] * loss[c] for c in names),
                "lr": 1e-3,
                "weighting_lr": 1e-2,
                "grad_norm": 1.0,
                "teacher_entropy": 0.4,
                "samples": 32,
                "tokens": 80,
                "seconds": 0.1,
            }
        )
        if other and step % 10 == 0:
            for k in rng.choice(600, 64, replace=False):
                own = weighting.startswith(("instance", "analytic"))
                beta = weight[other[0]] * (np.exp(taste[k] * done * 1.5) if own else 1.0)
                betas.append(
                    (step, ids[k], other[0], float(beta), 0.3, float(rng.gamma(2, 0.3)), bool(~wrong[k]), bool(noisy[k]))
                )
    base.write_json(
        folder / "cost.json",
        {
            "seconds": 0.1 * steps,
            "device": "cpu",
            "peak_memory_bytes": 2**30,
            "memory": "resident memory of the process",
            "samples_seen": 32 * steps,
            "teacher_passes_shared": 600,
            "teacher_passes_own": 0,
        },
    )
    (folder / "dynamics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _snapshots(folder / "snapshots.npz", student, steps)
    columns = ["step", "id", "channel", "beta", "energy", "teacher_entropy", "teacher_correct", "noisy"]
    pd.DataFrame(betas, columns=columns).to_parquet(folder / "betas.parquet")


def _snapshots(path: Path, student: str, steps: int) -> None:
    """Logits of which one in a hundred answers; a student's come nearer to the teacher's from early to late."""
    rng = np.random.default_rng(zlib.crc32(student.encode()))
    values = {}
    for moment, reach in (("early", 8.0), ("late", 12.0)):
        for owner, top in (("student", reach), ("teacher", 14.0)):
            values[f"{owner}_{moment}"] = np.concatenate([rng.normal(-1.0, 1.5, 4950), rng.normal(top, 1.0, 50)])
    edges = np.linspace(min(v.min() for v in values.values()), max(v.max() for v in values.values()), 101)
    counts = {key: np.histogram(v, edges)[0] for key, v in values.items()}
    np.savez(path, edges=edges, early_step=np.array(1), late_step=np.array(steps), **counts)


def write_planted(folder: Path, seeds: tuple[int, ...] = (0,), clusters: int = 60, steps: int = 80) -> Path:
    """Write a run whose training data holds a planted truth, and weights that know it, or do not.

    Oracle: weight 0 where the teacher is blind and 1 elsewhere. Instance weights fall on blind samples by half a standard
    deviation of their own noise; analytic ones know nothing of blindness; none knows of label noise. The teacher's entropy
    is higher on blind samples of GQA and lower on those of POPE.
    """
    write_run(folder, seeds, clusters, list(PLANTED), steps)
    manifest = base.read_json(folder / "manifest.json")
    manifest["preset"]["data"] |= {"label_noise": 0.45, "blindness": 0.25, "complementary": True}
    base.write_json(folder / "manifest.json", manifest)
    rng = np.random.default_rng(11)
    truth = planted_rows(rng)
    _parquet(truth, folder / "data" / "train.parquet")
    entropy = rng.gamma(2.0, 0.2, len(truth))
    for benchmark, factor in (("gqa", 3.0), ("pope", 0.3)):
        entropy[(truth["benchmark"] == benchmark) & truth["blind"]] *= factor
    for student in PLANTED:
        for seed in seeds:
            _planted_betas(folder / "students" / student / f"seed{seed}" / "betas.parquet", student, truth, entropy, steps, rng)
    return folder


def planted_rows(rng: np.random.Generator, images: int = 200) -> pd.DataFrame:
    """Six samples per image, one per benchmark; those of ScienceQA show no image in every fifth."""
    blind_image = rng.random(images) < 0.25
    rows = []
    for k in range(images):
        for benchmark in BENCHMARKS:
            image = None if benchmark == "scienceqa" and k % 5 == 0 else f"{k:016x}"
            blind = bool(blind_image[k]) and image is not None
            noisy = image is not None and not blind and bool(rng.random() < 0.45)
            rows.append((f"{benchmark}/train-{k:05d}", benchmark, image, "asked", "said", "right", noisy, blind))
    columns = ["id", "benchmark", "image", "prompt", "answer", "clean_answer", "noisy", "blind"]
    return pd.DataFrame(rows, columns=columns)


def _planted_betas(
    path: Path, student: str, truth: pd.DataFrame, entropy: np.ndarray, steps: int, rng: np.random.Generator
) -> None:
    channels, _, weighting = student.partition("@")
    if "fkl" not in channels:
        return
    blind = truth["blind"].to_numpy()
    taste = rng.normal(0.0, 0.6, len(truth))
    parts = []
    for step in range(0, steps, 10):
        where = np.sort(rng.choice(len(truth), 300, replace=False))
        log = np.full(300, 0.01 * step)
        if weighting.startswith("instance"):
            log = log + taste[where] - 0.5 * blind[where]
        if weighting == "analytic":
            log = log + taste[where]
        beta = np.where(blind[where], 0.0, 1.0) if weighting == "oracle" else np.exp(log)
        beta = np.full(300, fixed_weight(weighting)) if weighting.startswith("fixed") or not weighting else beta
        facts = truth.iloc[where]
        parts.append(
            pd.DataFrame(
                {
                    "step": step,
                    "id": facts["id"].to_numpy(),
                    "channel": "fkl",
                    "beta": beta.astype(np.float32),
                    "energy": 0.3,
                    "teacher_entropy": entropy[where].astype(np.float32),
                    "teacher_correct": ~facts["blind"].to_numpy(),
                    "noisy": facts["noisy"].to_numpy(),
                }
            )
        )
    pd.concat(parts, ignore_index=True).to_parquet(path)
