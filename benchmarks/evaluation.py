"""Questions a second, one at a time and batched: ``python benchmarks/evaluation.py``, minutes on one core, no network.

For every checkpoint and protocol of the embedded suite (``--run RUN`` takes the students of a finished run as well):

* plain: each question by itself, as a page of documentation has it: render, process, generate, decode; and for the gold
  reply one pass over prompt and reply.
* first: this project's evaluation of the first model of a worker, which makes prompts and images ready.
* next: its evaluation of each further model, which finds them ready.

The replies of all three are compared question by question. Times are processor time on a CPU and wall time on a GPU, medians
of ``--repeats``. Plain evaluation is measured on the first ``--plain`` questions of each protocol, the others on all.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

import tasks
from harness import miniature
from harness.base import write_json
from harness.manifest import hardware
from tasks.catalogue import Protocol
from tasks.evaluate import diagnose, evaluate
from tasks.lmms import CheckpointModel
from tasks.prepared import Desks
from tasks.questions import QuestionSet

console = Console(soft_wrap=True)
Suite = dict[str, tuple[Protocol, QuestionSet]]


@dataclass(frozen=True)
class Row:
    """One checkpoint on one protocol: questions a second, and how many replies of the two ways differ.

    Attributes:
        questions: that were compared.
        plain, first, next: questions a second of replies; ``gold_*`` of gold replies' log-probabilities.
        differing: replies that are not those of the plain way.
        gold_apart: largest difference of a question's mean negative log-likelihood, nats.
        padding: of the replies.
    """

    model: str
    protocol: str
    questions: int
    plain: float
    first: float
    next: float
    differing: int
    gold_plain: float
    gold_next: float
    gold_apart: float
    padding: str


class Clock:
    """Seconds of processor time, or of wall time with the GPU waited for."""

    def __init__(self, device: str) -> None:
        self._device = device

    def of(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Return what ``work`` took and returned."""
        read = time.process_time if self._device == "cpu" else time.perf_counter
        started = read()
        found = work()
        if self._device != "cpu":
            torch.cuda.synchronize()
        return read() - started, found


class Plain:
    """Batch 1, as one would write it first: the reference."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        self.processor: Any = AutoProcessor.from_pretrained(folder, backend="pil")

    def _inputs(self, prompt: str, image: Any) -> dict[str, torch.Tensor]:
        content = [{"type": "image"}] * (image is not None) + [{"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        special = not text.startswith(self.processor.tokenizer.bos_token)
        made = self.processor(
            text=[text], images=None if image is None else [image], return_tensors="pt", add_special_tokens=special
        )
        return {name: value.to(self.model.device) for name, value in made.items()}

    @torch.inference_mode()
    def reply(self, prompt: str, image: Any, protocol: Protocol) -> str:
        """Answer one question greedily."""
        inputs = self._inputs(prompt, image)
        made = self.model.generate(**inputs, max_new_tokens=protocol.generation.max_new_tokens, do_sample=False)
        text = str(self.processor.tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        for mark in protocol.generation.until:
            text = text.split(mark)[0]
        return text.strip()

    @torch.inference_mode()
    def gold(self, prompt: str, image: Any, answer: str) -> float:
        """Return the mean negative log-likelihood of a gold reply and its end token, nats."""
        inputs = self._inputs(prompt, image)
        tokenizer = self.processor.tokenizer
        ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        more = torch.tensor([ids], device=self.model.device)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], more], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        logits = self.model(**inputs).logits[0, -len(ids) - 1 : -1]
        return float(-logits.float().log_softmax(-1).gather(1, more[0][:, None]).mean())


def one_by_one(plain: Plain, protocol: Protocol, found: QuestionSet, count: int, clock: Clock, repeats: int) -> Any:
    """Return seconds and results of the plain way on the first ``count`` questions: replies, then gold replies."""
    asked = list(zip(found.questions, tasks.prompts(protocol, found), strict=True))[:count]
    shown = [None if q.image is None else found.images[q.image] for q, _ in asked]

    def replies() -> list[str]:
        return [plain.reply(prompt, image, protocol) for (_, prompt), image in zip(asked, shown, strict=True)]

    def gold() -> list[float]:
        return [plain.gold(prompt, image, q.answer) for (q, prompt), image in zip(asked, shown, strict=True)]

    return _median(replies, clock, repeats), _median(gold, clock, repeats)


def _median(work: Callable[[], Any], clock: Clock, repeats: int) -> tuple[float, Any]:
    taken = [clock.of(work) for _ in range(repeats)]
    return statistics.median(seconds for seconds, _ in taken), taken[0][1]


def batched(model: CheckpointModel, suite: Suite, name: str, desks: Desks, clock: Clock, scratch: Path) -> Any:
    """Return seconds and results of this project's way: replies, then gold replies."""
    protocol, found = suite[name]
    model.desks = desks
    model.__dict__.pop("desk", None)  # another worker's
    replies = clock.of(lambda: evaluate("", protocol, found, model=model, replies_path=scratch / "replies.jsonl"))
    gold = clock.of(lambda: diagnose(model, protocol, found, keep=False))
    return replies, gold


def compare(label: str, folder: Path, suite: Suite, options: dict[str, Any]) -> list[Row]:
    """Measure one checkpoint on every protocol."""
    clock, repeats, device = Clock(options["device"]), options["repeats"], options["device"]
    plain = Plain(folder, device)
    model = CheckpointModel(folder, batch_size=options["batch_size"], device=device)
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        batched(model, suite, next(iter(suite)), Desks(), clock, scratch)  # a first use loads code
        rows = []
        for name, (protocol, found) in suite.items():
            count = min(options["plain"] or len(found.questions), len(found.questions))
            plain_replies, plain_gold = one_by_one(plain, protocol, found, count, clock, repeats)
            cold, warm, warm_gold = [], [], []
            for _ in range(repeats):
                desks = Desks()
                cold.append(batched(model, suite, name, desks, clock, scratch)[0])
                replies, gold = batched(model, suite, name, desks, clock, scratch)
                warm.append(replies)
                warm_gold.append(gold)
            sets = [[row["reply"] for row in each[1]][:count] for each in (cold[0], warm[0])]
            differing = sum(len({a, b, c}) > 1 for a, b, c in zip(plain_replies[1], *sets, strict=True))
            nll = warm_gold[0][1].rows["nll"].to_numpy(dtype=float)[:count]
            total = len(found.questions)
            speeds = (count / plain_replies[0], total / _middle(cold), total / _middle(warm))
            gold_speeds = (count / plain_gold[0], total / _middle(warm_gold))
            apart = float(np.abs(nll - plain_gold[1]).max())
            rows.append(Row(label, name, count, *speeds, differing, *gold_speeds, apart, model.how["replies"]["padding"]))
            console.print(line(rows[-1]))
    return rows


def _middle(taken: list[tuple[float, Any]]) -> float:
    return statistics.median(seconds for seconds, _ in taken)


def line(row: Row) -> str:
    """Return a Markdown table's line."""
    return (
        f"| {row.model} | {row.protocol} | {row.questions} | {row.plain:.0f} | {row.first:.0f} | {row.next:.0f} |"
        f" {row.first / row.plain:.1f} | {row.next / row.plain:.1f} | {row.differing} |"
        f" {row.gold_next / row.gold_plain:.1f} | {row.gold_apart:.1e} |"
    )


HEADER = (
    "| model | protocol | compared | plain /s | first /s | next /s | first x | next x | other replies | gold x | gold apart |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def main(
    run: Annotated[Path | None, typer.Option("--run", help="A finished embedded run, whose students are measured too.")] = None,
    students: Annotated[int, typer.Option("--students", help="At most so many of them.")] = 1,
    protocols: Annotated[list[str] | None, typer.Option("--protocol", help="Only these; several times for several.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Clusters per protocol; all without it.")] = None,
    plain: Annotated[int, typer.Option("--plain", help="Questions of the plain way per protocol; 0 for all.")] = 60,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 128,
    repeats: Annotated[int, typer.Option("--repeats", min=1)] = 3,
    device: Annotated[str, typer.Option("--device")] = "cpu",
    out: Annotated[Path, typer.Option("--out", help="JSON; a Markdown file is written beside it.")] = Path(
        "runs/benchmarks/evaluation.json"
    ),
) -> None:
    """Measure the embedded teacher, the untrained student and a run's students on the embedded suite."""
    torch.set_num_threads(1)
    folders = {"teacher": miniature.FOLDER / "teacher", "base": miniature.FOLDER / "base"}
    if run is not None:
        found = sorted(run.glob("students/*/seed*/student"))[:students]
        folders |= {path.parts[-3]: path for path in found}
    chosen = [p for p in miniature.protocols() if not protocols or p.name in protocols]
    suite = {p.name: (p, tasks.load(p, limit=limit)) for p in chosen}
    options = {"limit": limit, "plain": plain, "batch_size": batch_size, "repeats": repeats, "device": device}
    console.print(HEADER)
    rows = [row for label, folder in folders.items() for row in compare(label, folder, suite, options)]
    ratios = {way: sum(1 / r.plain for r in rows) / sum(1 / getattr(r, way) for r in rows) for way in ("first", "next")}
    summary = (
        f"over all: first {ratios['first']:.1f} x, next {ratios['next']:.1f} x; {sum(r.differing for r in rows)} replies differ"
    )
    console.print(summary)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"options": options, "ratios": ratios, "hardware": hardware(device), "rows": [asdict(row) for row in rows]})
    out.with_suffix(".md").write_text("\n".join([HEADER, *map(line, rows), "", summary, ""]), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
