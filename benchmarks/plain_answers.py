"""How the plain pipeline of benchmarks/plain_run.py opens a checkpoint and asks a model: one question at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tasks


@dataclass
class Clock:
    """Processor seconds by what they were spent on."""

    seconds: dict[str, float]

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the seconds of a block."""
        started = time.process_time()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.process_time() - started


def load(folder: Path) -> tuple[Any, Any]:
    """Return model (float32) and processor of a checkpoint folder."""
    import transformers

    library: Any = transformers
    library.utils.logging.disable_progress_bar()
    model = library.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True)
    processor.image_processor = library.AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    vision = model.config.vision_config
    processor.image_tokens_each = (vision.image_size // vision.patch_size) ** 2
    return model.eval(), processor


@dataclass
class Examiner:
    """Asks one model at a time, question by question."""

    questions: Mapping[str, Any]
    diagnoses: bool
    clock: Clock

    def __post_init__(self) -> None:
        self.prompts = {name: tasks.prompts(tasks.protocol(name), found) for name, found in self.questions.items()}
        self.teacher: dict[str, list[Tensor]] = {}

    def run(self, folder: Path, is_teacher: bool) -> tuple[dict[str, float], dict[str, list[str]]]:
        """Return scores and replies by protocol."""
        with self.clock.on("load"):
            self.model, self.processor = load(folder)
        pictures, side = self.processor.image_processor, self.model.config.vision_config.image_size
        if not pictures.do_resize:  # one that resizes nothing: images of other sizes are squeezed, as the project does
            pictures.do_resize, pictures.size = True, {"height": side, "width": side}
        scores, replies = {}, {}
        for name, found in self.questions.items():
            protocol = tasks.protocol(name)
            prompts = self.prompts[name]
            with self.clock.on("generate"):
                replies[name] = [
                    self._answer(prompt, self._image(found, k), protocol.generation) for k, prompt in enumerate(prompts)
                ]
            rows = [{"id": q.id, "reply": text} for q, text in zip(found.questions, replies[name], strict=True)]
            scores[name] = tasks.score(protocol, rows, gold=found).value
            if self.diagnoses:
                with self.clock.on("gold answers"):
                    self._diagnose(name, found, prompts, is_teacher)
        return scores, replies

    @staticmethod
    def _image(found: Any, number: int) -> Any:
        key = found.questions[number].image
        return None if key is None else found.images[key]

    def _inputs(self, prompt: str, image: Any, more: Sequence[int] = ()) -> dict[str, Tensor]:
        content = ([{"type": "image"}] if image is not None else []) + [{"type": "text", "text": prompt}]
        turns = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        shown = {} if image is None else {"images": [image]}
        made = dict(self.processor(text=text, **shown, return_tensors="pt", add_special_tokens=False))
        if more:
            fed = torch.tensor([list(more)])
            made["input_ids"] = torch.cat([made["input_ids"], fed], 1)
            made["attention_mask"] = torch.ones_like(made["input_ids"])
        return {name: made[name] for name in ("input_ids", "attention_mask", "pixel_values") if name in made}

    @torch.inference_mode()
    def _answer(self, prompt: str, image: Any, options: Any) -> str:
        inputs, tokenizer = self._inputs(prompt, image), self.processor.tokenizer
        made = self.model.generate(
            **inputs, max_new_tokens=options.max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        text = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for mark in options.until:
            text = text.split(mark)[0]
        return str(text.strip())

    @torch.inference_mode()
    def _diagnose(self, name: str, found: Any, prompts: Sequence[str], is_teacher: bool) -> None:
        """Negative log-likelihood, agreement with the teacher and divergence from it, at the gold answers."""
        tokenizer, kept = self.processor.tokenizer, []
        for k, (question, prompt) in enumerate(zip(found.questions, prompts, strict=True)):
            ids = [*tokenizer(question.answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            logits = self.model(**self._inputs(prompt, self._image(found, k), ids[:-1])).logits[0]
            logs = logits.log_softmax(-1)[-len(ids) :]
            _ = -logs[torch.arange(len(ids)), ids].mean(), logs[0].exp().max()
            if is_teacher:
                kept.append(logs)
            elif name in self.teacher:
                said = self.teacher[name][k]
                _ = (said.argmax(-1) == logs.argmax(-1)).all(), (said.exp() * (said - logs)).sum(-1).mean()
        if is_teacher:
            self.teacher[name] = kept
