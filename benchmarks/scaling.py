"""How long the paper's Table 4 takes, from a measured step: students x seeds on one GPU, eight, or one for each student.

    python benchmarks/scaling.py --step step.json        step.json: from benchmarks/gpu_step.py, on the GPU in question
    python benchmarks/scaling.py --rate 200              what it would be if a GPU made 200 TFLOP/s of a step's operations

Floating-point operations are counted from the preset's rows and words and the models' published shapes
(benchmarks/real_size.py).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.base import read_json
from harness.config import Preset, load_preset
from harness.estimates import TEMPLATE, TOKENS_PER_WORD
from real_size import STUDENT, TEACHER, flops

PRESET = "paper-table4"
#: Bytes of one exact cached logit.
EXACT = 4


@dataclass(frozen=True)
class Work:
    """One stage of the training of one student.

    Attributes:
        name: of the stage; rows: of its corpus.
        tokens, supervised: means of a row. All words but a question's are taken for supervised: an upper bound.
        student, teacher: floating-point operations of a row.
    """

    name: str
    rows: int
    tokens: int
    supervised: float
    student: float
    teacher: float


def stages(preset: Preset) -> list[Work]:
    """Return the training of one student, stage by stage."""
    found = []
    for stage in preset.stages:
        corpus = preset.corpora[stage.corpus]
        if corpus.rows is None or corpus.words is None:
            raise ValueError(f"corpus {stage.corpus!r} of preset {preset.name!r} says neither rows nor words")
        supervised = TOKENS_PER_WORD * corpus.words
        tokens = round(supervised + preset.declared["base"].vision_tokens + TEMPLATE)
        alone = flops(STUDENT, None, 1, tokens, supervised)
        both = flops(STUDENT, TEACHER, 1, tokens, supervised)
        found.append(Work(stage.name, corpus.rows, tokens, supervised, alone, both - alone))
    return found


def rates(step: Mapping[str, Any]) -> dict[str, float]:
    """Return the operations a second that a measured step made of those it asked for, live and cached; mean over recipes."""
    found: dict[str, list[float]] = {}
    for each in step["steps"]:
        found.setdefault(each["teacher"], []).append(each["flops"] / each["seconds"])
    return {kind: sum(values) / len(values) for kind, values in found.items() if kind != "none"}


def table(work: Sequence[Work], live: float, cached: float, students: int, seeds: int, gpus: Sequence[int]) -> str:
    """Return hours as Markdown.

    Args:
        work: of one student.
        live, cached: operations a second with each kind of teacher.
        students, seeds, gpus: how many.
    """
    own = sum(w.rows * w.student for w in work)
    teacher = [w.rows * w.teacher for w in work]
    count = students * seeds
    lines = [
        f"| GPUs | trainings at once | rounds of {count} | teacher live (h) | teacher once, then cached (h) |",
        "|---|---|---|---|---|",
    ]
    for number in gpus:
        rounds = math.ceil(count / number)
        with_teacher = rounds * (own + sum(teacher)) / live / 3600
        signal = sum(teacher) if number == 1 else max(teacher)  # one job a corpus
        once = signal / live + rounds * own / cached
        lines.append(f"| {number} | {min(number, count)} | {rounds} | {with_teacher:,.0f} | {once / 3600:,.0f} |")
    return "\n".join(lines) + "\n"


def facts(work: Sequence[Work]) -> str:
    """Return what one student's training consists of, as Markdown."""
    lines = [
        "| stage | rows | tokens a row | student (TFLOP a row) | teacher (TFLOP a row) | student (EFLOP) | teacher (EFLOP)"
        " | exact logits (TB) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for w in work:
        stored = w.rows * w.supervised * TEACHER.vocabulary * EXACT / 1e12
        lines.append(
            f"| {w.name} | {w.rows:,} | {w.tokens} | {w.student / 1e12:.2f} | {w.teacher / 1e12:.2f}"
            f" | {w.rows * w.student / 1e18:.2f} | {w.rows * w.teacher / 1e18:.2f} | {stored:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--step", type=Path, help="a measured step of benchmarks/gpu_step.py")
    source.add_argument("--rate", type=float, help="TFLOP/s, where no step was measured")
    parser.add_argument("--students", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 36])
    given = parser.parse_args()
    work = stages(load_preset(PRESET))
    if given.step is None:
        measured = dict.fromkeys(("live", "cached"), given.rate * 1e12)
    else:
        measured = rates(read_json(given.step))
    print(facts(work))  # noqa: T201 - a script
    print(table(work, measured["live"], measured["cached"], given.students, given.seeds, given.gpus))  # noqa: T201


if __name__ == "__main__":
    main()
