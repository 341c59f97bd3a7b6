"""Make a vision tower, a teacher and a student base from a corpus: for the embedded suite and for presets that ship no models.

The three share one tower and one tokenizer: the tower comes first and carries the processor, the others are built on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.base import Strict, UserError, write_json
from students.pretrain import PretrainOptions
from students.shape import LlavaShape
from students.tower import TowerOptions

if TYPE_CHECKING:
    from students.data.samples import TrainingSet
    from students.models.llava import LlavaAdapter

#: The fixed instructions of lmms-eval's six tasks; one token each in a small vocabulary.
PHRASES = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
    "There are several options:",
)

Progress = Callable[[int, int], None]


class Making(Strict):
    """How one model is made.

    Attributes:
        corpus: ``miniature`` (scenes of its own, none of them in train, dev or test) or ``data`` (the run's training
            rows, with their clean answers).
        images: how many scenes of the miniature corpus.
        shape: of the whole model; for a tower trained by ``labels`` only its vision part matters.
        tower: how the role ``tower`` learns: ``dense`` labels per patch, or jointly with a language model on ``labels``.
        dense: steps and rates of a dense tower.
        labels: steps and rates of training on labels; None for a dense tower.
        align: steps of projector alignment, 0 for none (it needs a corpus that knows what each patch shows).
        seed: of weights and order.
        half: write float16 weights.
    """

    corpus: Literal["miniature", "data"]
    images: int = 0
    shape: LlavaShape
    tower: Literal["dense", "joint"] | None = None
    dense: TowerOptions | None = None
    labels: PretrainOptions | None = None
    align: int = 0
    seed: int = 0
    half: bool = False


@dataclass(frozen=True)
class Corpus:
    """A corpus: samples with images and, where known, what every patch shows.

    Attributes:
        training: samples and images.
        dense: int lists [patches][tasks] per image key, 0 for nothing; empty where not known.
        words: word lists [patches] per image key; empty where not known.
    """

    training: TrainingSet
    dense: dict[str, list[list[int]]]
    words: dict[str, list[list[str]]]


def _write(adapter: LlavaAdapter, out: Path, role: str, half: bool) -> None:
    import torch

    adapter.model.to(torch.float16 if half else torch.float32)
    if role == "tower":
        adapter.tower.save_pretrained(out)
        adapter.processor.save_pretrained(out)
    else:
        adapter.save(out)


def _tokenizer(corpus: Corpus) -> Any:
    from students.tokens import build_tokenizer

    texts = {text for sample in corpus.training for text in (sample.prompt, sample.clean_answer)}
    texts |= {word for patches in corpus.words.values() for patch in patches for word in patch}
    return build_tokenizer(sorted(texts), PHRASES)


def _start(making: Making, tower: Path | None, corpus: Corpus) -> LlavaAdapter:
    """Build the model, on a given tower and its tokenizer or on new ones."""
    from students.models.llava import LlavaAdapter

    if tower is None:
        return LlavaAdapter.build(making.shape, _tokenizer(corpus), making.seed)
    from transformers import AutoTokenizer, CLIPVisionModel

    adapter = LlavaAdapter.build(making.shape, AutoTokenizer.from_pretrained(tower), making.seed)
    adapter.tower.load_state_dict(CLIPVisionModel.from_pretrained(tower).float().state_dict())
    return adapter


def _dense(adapter: LlavaAdapter, corpus: Corpus, making: Making, progress: Progress) -> dict[str, Any]:
    """Train a tower on dense labels; the last 5 % of the images are held out and measured."""
    import torch

    from students.tower import train_tower

    if making.dense is None or not corpus.dense:
        raise UserError("a dense tower needs the option 'dense' and a corpus that knows what each patch shows (miniature)")
    keys = list(corpus.dense)
    labels = torch.tensor([corpus.dense[key] for key in keys])
    pixels = adapter.pixels([corpus.training.images[key] for key in keys])
    kept = len(keys) - max(1, len(keys) // 20)
    steps = making.dense.steps

    def report(step: int, _: float) -> None:
        progress(step, steps)

    probe = train_tower(adapter.tower, pixels[:kept], labels[:kept], making.dense, making.seed, report)
    said, right = probe(pixels[kept:]), labels[kept:]
    shown = [right[..., task] > 0 for task in range(right.shape[-1])]
    return {
        f"held_out_accuracy_task_{task}": round(float((said[task] == right[..., task])[there].float().mean()), 4)
        for task, there in enumerate(shown)
        if bool(there.any())
    }


def _learn(adapter: LlavaAdapter, corpus: Corpus, making: Making, role: str, progress: Progress) -> dict[str, Any]:
    """Train on labels: projector and language model and, for a joint tower, the tower too."""
    import torch

    from students import pretrain
    from students.data import pack
    from students.tower import align, scale_projector
    from students.vision.pictures import pixel_table

    if making.labels is None:
        raise UserError(f"the {role} needs the option 'labels'")
    pixels = pixel_table(adapter, corpus.training)
    known = [key for key in corpus.training.images if key in pixels][:6000]
    sample = torch.stack([pixels[key] for key in known])
    measured: dict[str, Any] = {}
    if role != "tower":
        scale_projector(adapter, sample)
    if making.align:
        tokenizer = adapter.processor.tokenizer
        words = [[tokenizer(" ".join(w), add_special_tokens=False)["input_ids"] for w in corpus.words[key]] for key in known]
        measured["alignment_loss"] = round(align(adapter, sample, words, making.align, making.seed), 4)
    if role == "tower":
        adapter.tower.requires_grad_(True)
    encoded = pack.encode(corpus.training.samples, adapter.processor)
    steps, losses = making.labels.steps, []

    def report(step: int, loss: float) -> None:
        losses.append(loss)
        progress(step, steps)

    pretrain.train(adapter, encoded, pixels, making.labels, making.seed, report)
    return measured | {"last_loss": round(losses[-1], 4), "samples": len(encoded)}


def make(role: str, making: Making, corpus: Corpus, tower: Path | None, out: Path, progress: Progress) -> dict[str, Any]:
    """Make one model and write it to ``out`` as a Hugging Face folder.

    Args:
        role: ``tower`` (a ``CLIPVisionModel`` with the processor), ``teacher`` or ``base``.
        making: how.
        corpus: what it learns from; its clean answers.
        tower: the folder of the tower to build on; None for the role ``tower``.
        out: a folder that does not exist yet.
        progress: called with finished and total steps.

    Returns:
        What was measured on the way, also written to ``out/made.json``.

    Raises:
        UserError: for options that do not fit the role or the corpus.
    """
    if (role == "tower") == (tower is not None):
        raise UserError(f"the role {role!r} {'builds its own' if role == 'tower' else 'needs a'} tower")
    started = time.monotonic()
    adapter = _start(making, tower, corpus)
    if role == "tower" and making.tower == "dense":
        measured = _dense(adapter, corpus, making, progress)
    else:
        measured = _learn(adapter, corpus, making, role, progress)
    out.mkdir(parents=True)
    _write(adapter, out, role, making.half)
    learned = adapter.tower.parameters() if role == "tower" else adapter.model.parameters()
    measured |= {"parameters": sum(p.numel() for p in learned), "seconds": round(time.monotonic() - started, 1)}
    write_json(out / "made.json", {"role": role, "making": making.model_dump(mode="json"), "measured": measured})
    return measured


def data_corpus(training: TrainingSet) -> Corpus:
    """Make a corpus of a run's training rows, with their clean answers in place of noisy ones."""
    from students.data.samples import TrainingSet as Samples

    clean: Sequence[Any] = [replace(s, answer=s.clean_answer, noisy=False, blind=False) for s in training]
    return Corpus(Samples(tuple(clean), training.images), {}, {})
