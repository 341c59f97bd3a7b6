"""Gold answers from the files that benchmarks and papers publish them in: recognised by content, keyed as replies name them.

``tasks.gold(protocol, path)`` is all that most callers need. One module of ``tasks/answers/formats`` per file format.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base import UserError, digest
from tasks import rules
from tasks.answers import files, formats, shapes
from tasks.questions import Pictures, Question, QuestionSet

if TYPE_CHECKING:
    from tasks.catalogue import Protocol

Key = tuple[str, ...]
Row = shapes.Row


@dataclass(frozen=True)
class Gold(QuestionSet):
    """The questions of a gold file with their answers; no images.

    Attributes:
        left_out: id -> why, of rows that the gold knows but the protocol leaves out (text-only rows under
            ``scienceqa@img``): replies to them are counted, not errors.
        keys: how files of replies name a row -> its id, left-out rows included. POPE: (category, question_id); MME:
            (category/image, question without its prompt suffix); MMBench: (index,); else (id,). TextVQA also by
            (image_id, question in lower case), as LLaVA's answer files name them. POPE's 8,910 also by LLaVA's own numbers
            (random after 10,000,000, popular after 20,000,000), with the category and alone.
        order: ids of the rows that count, in the gold's order: what a position (``index``, ``doc_id``) in a file means.
        whole: True where the gold is itself a file of replies (records with ``ground_truth`` and ``prediction``) whose rows
            carry no id: they are named by position then.
        path: the file or folder.
    """

    left_out: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[Key, str] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    whole: bool = False
    path: str = ""


def gold(protocol: Protocol, path: str | Path | None = None, data_root: str | Path | None = None) -> QuestionSet:
    """Return a protocol's gold answers.

    Args:
        protocol: whose.
        path: a gold file or folder, in any format of ``tasks/answers/formats``; null = the protocol's own questions, from
            ``data_root``, the hub, or (embedded data) this package.
        data_root: see :func:`tasks.load`.

    Returns:
        A :class:`Gold`; for embedded protocols a plain question set.

    Raises:
        UserError: for a path that does not exist, content that is no gold of the benchmark, or ids that repeat.
    """
    if path is not None:
        content = files.read(Path(path))
        rows, whole = formats.rows(protocol.benchmark, content)
        return assemble(protocol.benchmark, protocol.name, protocol.keep, rows, str(path), whole=whole)
    from tasks import catalogue

    return catalogue.load(protocol, data_root)


def assemble(
    benchmark: str,
    name: str,
    keep: str | None,
    rows: Sequence[Row],
    path: str,
    *,
    whole: bool = False,
    shown: Sequence[str | None] | None = None,
    pictures: Pictures | None = None,
) -> Gold:
    """Return rows in official columns as a protocol's gold: shaped, split into counted and left-out rows, keyed.

    Args:
        benchmark: says what the columns mean.
        name: of the protocol.
        keep: the protocol's rule for rows that count.
        rows: in the data set's order.
        path: where they were read from, for messages.
        whole: see :class:`Gold`.
        shown: per row, the key of its image in ``pictures``; without it no question has an image.
        pictures: the images.

    Raises:
        UserError: when ids repeat, a row does not fit its benchmark, or no row counts.
    """
    shape = shapes.shape(benchmark)
    kept = rules.rule("keep", keep) if keep is not None else None
    counted: list[Question] = []
    left_out: dict[str, str] = {}
    keys: dict[Key, str] = {}
    times: Counter[Key] = Counter()
    for number, row in enumerate(rows):
        made = shape(row, number)
        for key in dict.fromkeys(made.keys):
            if key in keys and key == made.keys[0]:
                raise UserError(f"{path}: two rows are called {' / '.join(key)}")
            times[key] += 1
            keys[key] = made.question.id
        if kept is None or kept(made.question.doc, made.shows_image):
            picture = None if shown is None else shown[number]
            counted.append(replace(made.question, image=picture))
        else:
            left_out[made.question.id] = f"outside {name}"
    if not counted:
        raise UserError(f"{path}: none of its {len(rows)} rows is one that {name} counts")
    unique = {key: found for key, found in keys.items() if times[key] == 1}
    content = [[q.id, q.cluster, q.group, q.answer, q.image, str(q.doc.get("question"))] for q in counted]
    order = tuple(q.id for q in counted)
    images = {} if pictures is None else pictures.only(q.image for q in counted if q.image is not None)
    return Gold(tuple(counted), images, digest(content), left_out, unique, order, whole, path)
