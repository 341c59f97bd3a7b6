"""A protocol's questions as an lmms-eval task: its prompts, decoding and metric code over our data, with no data set library.

The packaged task configuration is used as it is, apart from where the data come from, the decoding (the protocol's) and
metrics that only write submission files.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from harness.base import UserError, unknown
from tasks import engine, parsers, published
from tasks.catalogue import Protocol, check
from tasks.questions import QuestionSet

#: Overrides of the packaged configuration by the protocol's ``prompt``; ``lmms`` is lmms-eval's prompt for unknown models.
PROMPTS: dict[str, dict[str, Any]] = {"lmms": {}}
_FILES_ONLY = {"submission"}  # metrics that write xlsx or json files and score nothing


class Docs:
    """Questions as lmms-eval's task code expects rows: a fresh dict per access, with a PIL image where asked for.

    Fresh, because TextVQA's scoring rewrites ``doc["answers"]`` in place.
    """

    def __init__(self, questions: QuestionSet, pictures: bool) -> None:
        self._questions = questions
        self._pictures = pictures
        self._opened: tuple[str, Image.Image] | None = None  # the last one: many benchmarks ask about an image in a row
        keys = dict.fromkeys(key for q in questions.questions for key in q.doc)
        self.features = keys | ({"image": None} if pictures else {})

    def __len__(self) -> int:
        return len(self._questions.questions)

    def __getitem__(self, index: int) -> dict[str, Any]:
        question = self._questions.questions[index]
        doc: dict[str, Any] = _fresh(question.doc)
        if self._pictures:
            doc["image"] = None if question.image is None else self._picture(question.image)
        return doc

    def _picture(self, key: str) -> Image.Image:
        if self._opened is None or self._opened[0] != key:
            self._opened = (key, Image.fromarray(self._questions.images[key]))
        return self._opened[1].copy()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


def _fresh(value: Any) -> Any:
    """Copy rows as data sets have them, dicts and lists of plain values, at a tenth of ``copy.deepcopy``'s cost."""
    if isinstance(value, Mapping):
        return {key: _fresh(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_fresh(each) for each in value]
    return value if value is None or isinstance(value, (str, int, float)) else copy.deepcopy(value)


class LocalTask(engine.ConfigurableTask):  # type: ignore[misc]
    """lmms-eval's task over :class:`Docs` instead of a download."""

    def __init__(self, config: dict[str, Any], questions: QuestionSet) -> None:
        self._local = questions
        super().__init__(config=config)

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None) -> None:  # noqa: ARG002
        """Set the data, in place of the hub download (which lmms-eval would retry for 8 s)."""
        split = self.config.test_split
        self.dataset = {split: Docs(self._local, pictures=True)}
        self.dataset_no_image = {split: Docs(self._local, pictures=False)}

    def process_results(self, doc: dict[str, Any], results: list[str], full_docs: Any = None) -> dict[str, Any]:
        """Score one reply: the packaged method without the retries around it, so that an error surfaces at once."""
        scored: dict[str, Any] = engine.ConfigurableTask.process_results.__wrapped__(self, doc, results, full_docs)
        return scored


def build(protocol: Protocol, questions: QuestionSet, scored: bool = True) -> LocalTask:
    """Return ``questions`` as the lmms-eval task that ``protocol`` names.

    Args:
        protocol: names the packaged task, the prompt and the decoding.
        questions: checked against the protocol first.
        scored: False for training questions, which need no whole MME pairs or MMBench rotations.

    Raises:
        UserError: for an unknown prompt or reader, a task file that lmms-eval lacks, or questions that would be prompted
            or scored wrongly.
    """
    if protocol.prompt not in PROMPTS:
        raise unknown("prompt", protocol.prompt, PROMPTS)
    if protocol.parser not in parsers.PARSERS:
        raise unknown("parser", protocol.parser, parsers.PARSERS)
    if protocol.score not in parsers.READERS:
        raise unknown("reader of scores", protocol.score, parsers.READERS)
    check(protocol, questions, scored=scored)
    if scored and protocol.score in parsers.GUARDS:
        parsers.GUARDS[protocol.score](questions.questions)
    if protocol.task is None:
        raise UserError(f"{protocol.name} is scored by published rules, not by lmms-eval")
    config = engine.packaged(protocol.task)
    config["dataset_path"], config["dataset_name"], config["dataset_kwargs"] = "local", None, None
    config["process_docs"] = None  # GQA's would download the images
    config["metric_list"] = [metric for metric in config["metric_list"] if metric["metric"] not in _FILES_ONLY]
    config["model_specific_generation_kwargs"] = None
    config["generation_kwargs"] = {
        "max_new_tokens": protocol.generation.max_new_tokens,
        "until": list(protocol.generation.until),
        "do_sample": False,
        "temperature": 0.0,
    }
    config["metadata"] = {"version": protocol.version, "data": questions.digest}  # lmms-eval's own hash never sees the data
    config.update(copy.deepcopy(PROMPTS[protocol.prompt]))
    return LocalTask(config, questions)


@dataclass(frozen=True)
class Asked:
    """A protocol's questions as a model is asked them; built once for all models.

    Attributes:
        instances: lmms-eval's requests, in the questions' order.
        name: the task's, by which requests point to ``documents``.
        documents: by split.
        task: lmms-eval's, which also scores; None for published rules.
    """

    instances: tuple[engine.Instance, ...]
    name: str
    documents: dict[str, Docs]
    task: LocalTask | None

    @property
    def prompts(self) -> list[str]:
        """The prompts alone, without chat template."""
        return [str(instance.args[0]) for instance in self.instances]

    def pictures(self, number: int) -> list[Image.Image]:
        """Return the images that a question shows."""
        _, _, doc_to_visual, doc_id, _, split = self.instances[number].args
        return list(doc_to_visual(self.documents[split][doc_id]))


def requests(protocol: Protocol, questions: QuestionSet) -> Asked:
    """Return what a model is asked.

    Args:
        protocol: by lmms-eval's task code, or published: the prompts are then those of its rule.
        questions: what to ask.

    Raises:
        UserError: see :func:`build`.
    """
    if protocol.scorer == "lmms":
        task = build(protocol, questions)
        task.build_all_requests()
        made = sorted(task.instances, key=lambda instance: int(instance.doc_id))
        return Asked(tuple(made), str(task.config.task), task.dataset, task)
    generation = {"max_new_tokens": protocol.generation.max_new_tokens, "until": list(protocol.generation.until)}
    name, split = protocol.name, protocol.data.split
    facts = {"task": name, "repeats": 1}
    made = [
        engine.Instance(
            request_type="generate_until",
            arguments=(prompt, generation, _pictures, number, name, split),
            idx=0,
            metadata={**facts, "doc_id": number},
        )
        for number, prompt in enumerate(published.prompts(protocol, questions))
    ]
    return Asked(tuple(made), name, {split: Docs(questions, pictures=True)}, None)


def _pictures(doc: Mapping[str, Any]) -> list[Image.Image]:
    """Return the images that a document shows: one or none."""
    return [] if doc["image"] is None else [doc["image"]]


def prompts(protocol: Protocol, questions: QuestionSet, scored: bool = True) -> list[str]:
    """Return the prompt of every question, in order, as lmms-eval's ``doc_to_text`` builds it (no chat template, no image).

    Args and errors as :func:`build`.
    """
    task = build(protocol, questions, scored)
    return [str(task.doc_to_text(doc)) for doc in Docs(questions, pictures=False)]
