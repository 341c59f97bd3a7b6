"""The embedded miniature suite as a source of questions."""

from __future__ import annotations

import functools

from tasks.miniature import build
from tasks.questions import QuestionSet


@functools.lru_cache(maxsize=32)
def load(benchmark: str, split: str, *, images: int = 3000) -> QuestionSet:
    """Return the questions of one flavour.

    Args:
        benchmark: scienceqa, gqa, textvqa, pope, mmbench or mme.
        split: ``train`` and ``pretrain`` (asked about the first ``images`` scenes) or ``dev`` and ``test``.
        images: scenes of a training split; an evaluation split has a fixed size and ignores it.

    Raises:
        UserError: for an unknown benchmark or split.
    """
    if split in build.TRAINING:
        return build.training_set(benchmark, split, images)
    return build.evaluation_set(benchmark, split)
