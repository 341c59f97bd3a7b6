"""A protocol's prompts, by whichever code the protocol names."""

from __future__ import annotations

from tasks import published
from tasks.catalogue import Protocol
from tasks.questions import QuestionSet


def prompts(protocol: Protocol, questions: QuestionSet, scored: bool = True) -> list[str]:
    """Return the prompt of every question, in order (no chat template, no image).

    Args:
        protocol: by lmms-eval's task code or by a published rule.
        questions: checked against the protocol first.
        scored: False for training questions, which need no whole MME pairs or MMBench rotations.

    Raises:
        UserError: for questions that the protocol cannot ask.
    """
    if protocol.scorer == "published":
        return published.prompts(protocol, questions, scored)
    from tasks import bridge

    return bridge.prompts(protocol, questions, scored)
