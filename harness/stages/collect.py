"""The tidy frames of a run, and the report made from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.base import digest, digest_folder

if TYPE_CHECKING:
    import pandas as pd

    from harness.workers import Context

#: Raise when the same inputs would give other frames or another report.
STAGE_VERSION = 1

TARGETS = ("scores.parquet", "diagnostics.parquet")
#: Files of a student's folder that the report reads, and no other stage does.
DYNAMICS = ("dynamics.jsonl", "betas.parquet", "snapshots.npz")
SCORES = (
    "student", "kind", "seed", "protocol", "protocol_version", "id", "cluster", "group", "gold", "prediction", "score",
    "unparseable",
)  # fmt: skip
DIAGNOSTICS = ("student", "seed", "protocol", "id", "nll", "confidence", "entropy", "teacher_agrees", "teacher_kl")


def room_digest() -> str:
    """Return a digest of everything in ``reports/``, so that a new layout, figure or template is in the next report."""
    from pathlib import Path

    import reports

    room = Path(reports.__file__).parent
    found = sorted({path.suffix for path in room.rglob("*") if path.is_file()} - {".pyc"})
    return digest([digest_folder(room, f"**/*{suffix}") for suffix in found])


def collect(context: Context) -> None:
    """Concatenate the scored questions and the diagnostics of every model into two frames, in report order."""
    import pandas as pd

    scores, diagnostics = [], []
    rows = context.config["rows"]
    for number, row in enumerate(rows):
        stem = context.root / row["stem"]
        scored = pd.read_parquet(f"{stem}.scores.parquet")
        scores.append(_labelled(scored, row, SCORES))
        if TARGETS[1] in context.stage.targets:
            diagnostics.append(_labelled(pd.read_parquet(f"{stem}.diagnostics.parquet"), row, DIAGNOSTICS))
        context.progress(number + 1, len(rows))
    for target, frames in zip(context.stage.targets, (scores, diagnostics), strict=False):
        pd.concat(frames, ignore_index=True).to_parquet(context.out(target), index=False)


def _labelled(frame: pd.DataFrame, row: dict[str, Any], columns: tuple[str, ...]) -> pd.DataFrame:
    """Add whose rows these are, and put the columns into the order of the contract."""
    import pandas as pd

    seed = pd.Series([row["seed"]] * len(frame), index=frame.index, dtype="Int64")  # null for given models
    return frame.assign(student=row["student"], kind=row["kind"], seed=seed)[list(columns)]


def report(context: Context) -> None:
    """Build tables, figures and pages from the run folder."""
    from reports.build import build

    build(context.root, out=context.out("report"), processes=2)
