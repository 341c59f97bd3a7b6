"""What ``harness.score`` says: one protocol's number for a file of replies, and the gap between protocols."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import UserError, atomic_path, unknown, write_jsonl

if TYPE_CHECKING:
    import pandas as pd

    from reports.statistics import Interval
    from tasks import Protocol, Scores
    from tasks.replies import Replies

#: How a table of questions is written, by the file's suffix.
FORMATS = (".csv", ".jsonl", ".parquet", ".tsv")
_UNITS = {"percent": "%", "points": "points"}
_LONG = 80
_NAMED = 3


@dataclass(frozen=True)
class Result:
    """Replies scored under one protocol.

    Attributes:
        protocol, scores, interval: what, how much, and how sure; the interval is for the sampling of questions.
        replies: as they were read; questions: how many the gold holds that the protocol counts.
        partial: counts were waived (``--partial``).
    """

    protocol: Protocol
    scores: Scores
    interval: Interval
    replies: Replies
    questions: int
    partial: bool

    @property
    def unparseable(self) -> pd.DataFrame:
        """The rows whose reply names no valid answer."""
        return self.scores.rows[self.scores.rows["unparseable"]]


def rescore(protocol: Protocol, replies: Path, gold: Path | None, data_root: Path | None, partial: bool) -> Result:
    """Read and score replies under a protocol.

    Raises:
        UserError: for files that cannot be read, replies that do not fit the questions, or (not ``partial``) counts that
            differ from the protocol's.
    """
    import tasks
    from reports.statistics import interval
    from tasks.replies import read

    if gold is not None:
        questions = tasks.gold(protocol, gold)
    else:
        questions = tasks.load(protocol, data_root if protocol.dataset is not None else None, partial=partial)
    found = read(replies, protocol, questions)
    if not partial and protocol.data.rows in (None, len(questions.questions)):
        _refuse_missing(replies, [question.id for question in questions.questions], {row["id"] for row in found.rows})
    scores = tasks.score(protocol, found.rows, questions, partial=partial)
    return Result(protocol, scores, interval(scores.rows, protocol), found, len(questions.questions), partial)


def _refuse_missing(path: Path, asked: Sequence[str], answered: Collection[str]) -> None:
    missing = [name for name in asked if name not in answered]
    if missing:
        named = ", ".join(repr(name) for name in missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        count = f"{len(missing):,} of {len(asked):,} questions"
        raise UserError(f"{path}: {count} have no reply: {named}; --partial scores what is there")


def record(result: Result) -> dict[str, Any]:
    """Return the result for ``--json``; ``interval`` is [low, high], or null where none can be given."""
    low, high = result.interval.low, result.interval.high
    return {
        "protocol": result.protocol.name,
        "value": result.scores.value,
        "unit": result.protocol.unit,
        "n": len(result.scores.rows),
        "interval": None if low is None or high is None else [low, high],
        "groups": result.scores.groups,
        "unparseable": len(result.unparseable),
        "partial": result.partial,
    }


# ---- for people ------------------------------------------------------------------------------------------------------------


def lines(result: Result, examples: int) -> Iterator[str]:
    """Yield what is printed of a result, with at most so many examples of unparseable replies."""
    protocol, scores, interval = result.protocol, result.scores, result.interval
    unit = _UNITS[protocol.unit]
    if interval.low is None or interval.high is None:
        ends = f"no interval ({interval.note})"
    else:
        note = f"; {interval.note}" if interval.note else ""
        clusters = f"{interval.clusters:,} clusters: {protocol.cluster}"
        ends = f"95 % interval [{interval.low:.2f}, {interval.high:.2f}] ({interval.method}, {clusters}{note})"
    yield f"{protocol.name}: {scores.value:.2f} {unit}, n = {len(scores.rows):,}, {ends}"
    yield f"  {protocol.title}: {' '.join(protocol.description.split())}"
    for note in result.replies.notes:
        yield f"  note: {note}"
    for reason, count in result.replies.left_out.items():
        yield f"  left out: {count:,} replies to questions {reason}"
    if result.partial:
        expected = protocol.data.rows
        whole = "" if expected is None else f"; the protocol has {expected:,}"
        yield f"  incomplete: {len(scores.rows):,} of the gold's {result.questions:,} questions are scored{whole}"
    for note in scores.notes:
        yield f"  note: {note}"
    sizes = scores.rows["group"].value_counts()
    width = max((len(name) for name in scores.groups), default=0)
    for name, value in scores.groups.items():
        yield f"  {name or '(no group)':<{width}}  {value:8.2f} {unit}  n = {sizes[name]:,}"
    yield from _measures(scores)
    yield from _unparseable(result, examples)


def _measures(scores: Scores) -> Iterator[str]:
    """Yield what the benchmark publishes beside its number, one column per measure."""
    names = list(dict.fromkeys(name for part in scores.measures.values() for name in part))
    if not names:
        return
    width = max(len(group) for group in scores.measures)
    yield f"  {'percent':<{width}}" + "".join(f"{name:>11}" for name in names)
    for group, part in scores.measures.items():
        shown = (f"{part[name]:11.2f}" if name in part else f"{'-':>11}" for name in names)
        yield f"  {group:<{width}}" + "".join(shown)


def _unparseable(result: Result, examples: int) -> Iterator[str]:
    rows = result.unparseable
    n = len(result.scores.rows)
    yield f"  unparseable: {len(rows):,} of {n:,} replies ({100 * len(rows) / n:.2f} %)"
    said = {row["id"]: row["reply"] for row in result.replies.rows}
    for name in rows["id"].head(examples):
        text = repr(said[name])
        yield f"    {name}: {text if len(text) <= _LONG else f'{text[: _LONG - 3]}...'}"
    if len(rows) > examples > 0:
        yield f"    and {len(rows) - examples:,} more (--out writes all rows, --limit-examples shows more)"


def gap(results: Sequence[Result]) -> Iterator[str]:
    """Yield how far the protocols lie apart on the same replies: each against the first that scores the same questions."""
    first, *others = results
    for other in others:
        a, b = first.scores.rows.set_index("id"), other.scores.rows.set_index("id")
        shared = a.index.intersection(b.index)
        names = f"{first.protocol.name} against {other.protocol.name}"
        if len(shared) == 0 or first.protocol.unit != other.protocol.unit:
            yield f"protocol gap: none ({names}): they score different questions"
            continue
        apart = int((a.loc[shared, "score"] != b.loc[shared, "score"]).sum())
        unit = "percentage points" if first.protocol.unit == "percent" else "points"
        yield (
            f"protocol gap: {first.scores.value - other.scores.value:+.2f} {unit} ({names}); of {len(shared):,} questions that "
            f"both score, {apart:,} are scored differently; {len(a) - len(shared):,} and {len(b) - len(shared):,} are "
            "scored by one alone"
        )


# ---- files -----------------------------------------------------------------------------------------------------------------


def check_out(path: Path) -> None:
    """Refuse a file of a kind that :func:`write_rows` does not know, before anything is scored."""
    if path.suffix not in FORMATS:
        raise unknown("suffix of --out", path.suffix or path.name, FORMATS)
    if path.is_dir():
        raise UserError(f"--out {path} is a folder; name a file")


def write_rows(path: Path, results: Sequence[Result]) -> None:
    """Write one row per question and protocol: the columns of ``scores.parquet``, the reply, and whether it is partial."""
    import pandas as pd

    frames = []
    for result in results:
        said: Mapping[str, str] = {row["id"]: row["reply"] for row in result.replies.rows}
        rows = result.scores.rows
        frames.append(rows.assign(reply=[said[name] for name in rows["id"]], partial=result.partial))
    frame = pd.concat(frames, ignore_index=True)
    if path.suffix == ".jsonl":
        write_jsonl(path, [{str(key): value for key, value in row.items()} for row in frame.to_dict(orient="records")])
        return
    with atomic_path(path) as temporary:
        if path.suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False, sep="\t" if path.suffix == ".tsv" else ",")
