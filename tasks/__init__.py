"""Benchmarks, protocols, scoring and the embedded miniature suite.

``tasks.protocol(name)``, ``tasks.load(protocol)``, ``tasks.score(protocol, replies)`` are all that most callers need. Each
name below is imported when it is first used: lmms-eval's protocols need lmms-eval, evaluating a checkpoint needs torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.answers import Gold as Gold
    from tasks.answers import gold as gold
    from tasks.averages import Derived as Derived
    from tasks.averages import derived as derived
    from tasks.averages import derived_names as derived_names
    from tasks.averages import one_column as one_column
    from tasks.catalogue import Protocol as Protocol
    from tasks.catalogue import load as load
    from tasks.catalogue import names as names
    from tasks.catalogue import protocol as protocol
    from tasks.prompting import prompts as prompts
    from tasks.questions import Question as Question
    from tasks.questions import QuestionSet as QuestionSet
    from tasks.scoring import Scores as Scores
    from tasks.scoring import constant_level as constant_level
    from tasks.scoring import score as score
    from tasks.training import TrainingRows as TrainingRows
    from tasks.training import training_rows as training_rows

# No module here is called protocol, score, gold or derived: importing it would replace the function of that name here.
_HOMES = {
    "Derived": "averages",
    "Gold": "answers",
    "Protocol": "catalogue",
    "Question": "questions",
    "QuestionSet": "questions",
    "Scores": "scoring",
    "TrainingRows": "training",
    "constant_level": "scoring",
    "derived": "averages",
    "derived_names": "averages",
    "gold": "answers",
    "load": "catalogue",
    "names": "catalogue",
    "one_column": "averages",
    "prompts": "prompting",
    "protocol": "catalogue",
    "score": "scoring",
    "training_rows": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tasks' has no attribute {name!r}")
    return getattr(importlib.import_module(f"tasks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
