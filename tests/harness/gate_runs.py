"""Run folders as the gate reads them (manifest, scores, replies), with answers that a test chooses. Never a result."""

import numpy as np
import pandas as pd

import tasks
from harness import base

#: questions per cluster
SIZE = {"gqa@miniature": 3, "pope@miniature": 6, "mmbench@miniature": 4, "mme@miniature": 2}


def questions(protocol, clusters):
    """Questions of the shape that the protocol's aggregation needs, sorted by id."""
    benchmark = protocol.partition("@")[0]
    rows = []
    for c in range(clusters):
        for k in range(SIZE[protocol]):
            group, gold = "all", ["red", "blue", "two"][(c + k) % 3]
            if benchmark == "mme":
                group, gold = f"part{c % 2}", ["yes", "no"][k]
            if benchmark == "pope":
                group, gold = ["random", "popular", "adversarial"][k // 2], ["yes", "no"][k % 2]
            if benchmark == "mmbench":
                gold = "ABCD"[(c + k) % 4]
            rows.append((f"{benchmark}-{c:04d}-{k}", f"{benchmark}-{c:04d}", group, gold))
    return pd.DataFrame(rows, columns=["id", "cluster", "group", "gold"])


def write(folder, answers, clusters=40, digests=None):
    """Write a run.

    Args:
        answers: {(student, seed or None): {protocol: bool array, right or wrong, one per question of ``questions``}}.
        digests: data digest per protocol, where a test wants others than the usual.
    """
    protocols = list(dict.fromkeys(name for held in answers.values() for name in held))
    frames = []
    for (student, seed), held in answers.items():
        for name, right in held.items():
            asked = questions(name, clusters)
            wrong = np.where(asked["gold"] == "yes", "no", np.where(asked["gold"] == "no", "yes", "green"))
            said = np.where(right, asked["gold"], wrong)
            rows = asked.assign(
                student=student, kind="student" if seed is not None else student, seed=seed, protocol=name,
                protocol_version=tasks.protocol(name).version, prediction=said, score=np.asarray(right, dtype=float),
                unparseable=False,
            )  # fmt: skip
            frames.append(rows)
            path = folder / "replies" / student / f"seed{seed or 0}" / f"{name}.jsonl"
            base.write_jsonl(path, [{"id": i, "reply": f"I say {s}"} for i, s in zip(asked["id"], said, strict=True)])
    scores = pd.concat(frames, ignore_index=True).astype({"seed": "Int64"})
    folder.mkdir(parents=True, exist_ok=True)
    scores.to_parquet(folder / "scores.parquet")
    seeds = sorted({seed for _, seed in answers if seed is not None})
    base.write_json(
        folder / "manifest.json",
        {
            "preset": {"name": "simulated", "title": "Simulated", "description": "Drawn by a test."},
            "students": list(dict.fromkeys(name for name, seed in answers if seed is not None)),
            "seeds": seeds or [0],
            "protocols": {
                name: {
                    "version": tasks.protocol(name).version,
                    "digest": (digests or {}).get(name, base.digest(name)),
                    "rows": clusters * SIZE[name],
                }
                for name in protocols
            },
            "versions": {"python": "3.11.2", "torch": "2.13.0"},
            "git_commit": "c" * 40,
            "hardware": {"processor": "a processor"},
        },
    )
    return folder


def drawn(rng, clusters, rate=0.85, names=tuple(SIZE)):
    """Right or wrong, with clusters that are easy or hard."""
    easy = {name: rng.beta(6 * rate, 6 * (1 - rate), clusters) for name in names}
    return {name: rng.random(clusters * SIZE[name]) < np.repeat(easy[name], SIZE[name]) for name in names}


def moved(rng, right, lost, gained=0.0):
    """Turn a share of right answers wrong, and of wrong ones right."""
    chance = rng.random(len(right))
    return np.where(right, chance >= lost, chance < gained)
