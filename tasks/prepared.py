"""Prompts made ready once for every model that reads them alike: rendered, tokenised, and each distinct image preprocessed.

Text comes from the checkpoint's own processor, which is shown a blank image of the right size, so that prompts can be grouped
before any image is preprocessed. Features of images are kept by the images' content, in a bounded amount of memory.
"""

from __future__ import annotations

import functools
import hashlib
import json
import uuid
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from tasks.questions import Pixels

Picture = Image.Image | Pixels
Shown = Callable[[int], Sequence[Picture]]
Inputs = dict[str, torch.Tensor]
_Made = TypeVar("_Made")
_Read = tuple[Inputs, tuple[Hashable, ...]]

#: Bytes of preprocessed images that a worker keeps: 1.3 MB each at 336 x 336 pixels.
IMAGE_BYTES = 1 << 30
_SETS = 16
_BULK = 256


def identity(processor: Any) -> str:
    """Return a digest of all that a processor's outputs depend on; a fresh one for tokenizers that cannot be compared."""
    tokenizer = processor.tokenizer
    known = hashlib.sha256()
    plain = (str, int, float, bool, type(None), list, tuple)
    for part in (processor, tokenizer):
        facts = {name: value for name, value in vars(part).items() if isinstance(value, plain)}
        facts = {name: value for name, value in facts.items() if name not in ("name_or_path", "vocab_file")}
        known.update(json.dumps([type(part).__qualname__, facts], sort_keys=True, default=repr).encode())
    pictures = getattr(processor, "image_processor", None)
    known.update(b"" if pictures is None else json.dumps(pictures.to_dict(), sort_keys=True, default=repr).encode())
    if hasattr(tokenizer, "backend_tokenizer"):
        known.update(tokenizer.backend_tokenizer.to_str().encode())
    elif hasattr(tokenizer, "sp_model"):
        known.update(tokenizer.sp_model.serialized_model_proto())
    else:
        return uuid.uuid4().hex
    known.update(json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=repr).encode())
    return known.hexdigest()


def image_digest(image: Picture) -> str:
    """Return a digest of an image's size and pixels."""
    shown = np.asarray(image)
    return hashlib.sha256(repr((shown.shape, shown.dtype.str)).encode() + np.ascontiguousarray(shown).tobytes()).hexdigest()


class Kept:
    """Tensors by key, the least recently used of which go first when they are more than ``limit`` bytes."""

    def __init__(self, limit: int = IMAGE_BYTES) -> None:
        self._limit, self._bytes = limit, 0
        self._held: OrderedDict[Hashable, Inputs] = OrderedDict()

    def get(self, key: Hashable) -> Inputs | None:
        """Return what is kept under ``key``."""
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: Hashable, value: Inputs) -> None:
        """Keep ``value`` for as long as there is room."""
        self._bytes += _size(value) - _size(self._held.pop(key, {}))
        self._held[key] = value
        while self._bytes > self._limit:
            self._bytes -= _size(self._held.popitem(last=False)[1])


def _size(value: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in value.values())


class _Blank:
    """In place of an image processor: the outputs of one prompt's images, again for each of ``count`` prompts."""

    def __init__(self, inner: Any, count: int) -> None:
        self._inner, self._count = inner, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __call__(self, images: Sequence[Any], *args: Any, **options: Any) -> Any:
        one = self._inner(images[: len(images) // self._count], *args, **options)
        for name, value in list(one.items()):
            one[name] = torch.cat([value] * self._count) if isinstance(value, torch.Tensor) else list(value) * self._count
        return one


@dataclass
class Row:
    """A prompt as tokens.

    Attributes:
        text: per-token inputs [L] without padding; the attention mask, of ones, is left out.
        images: digests of its images.
        layout: names and shapes of the features of its images; rows of one layout need no padding of images together.
    """

    text: Inputs
    images: tuple[str, ...]
    layout: tuple[Hashable, ...]

    @functools.cached_property
    def length(self) -> int:
        """Tokens, those of images included."""
        return len(self.text["input_ids"])


@dataclass
class PromptSet:
    """Prompts with their images; ``rows`` are in the prompts' order."""

    texts: tuple[str, ...]
    pictures: Shown
    rows: list[Row] = field(default_factory=list)
    rendered: list[str] = field(default_factory=list)


class Desk:
    """What one processor made of prompts and images, for all models with an equal one."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.images = Kept()
        self._sets: OrderedDict[Hashable, PromptSet] = OrderedDict()
        self._facts: dict[Hashable, Any] = {}

    def remember(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """Return a small fact about prompts and processor, made once."""
        made: _Made = self._facts[key] if key in self._facts else self._facts.setdefault(key, make())
        return made

    def render(self, prompt: str, count: int) -> str:
        """Return the chat-formatted text of a prompt with ``count`` images, up to where the reply starts."""
        content: list[dict[str, str]] = [{"type": "image"}] * count + [{"type": "text", "text": prompt}]
        turns = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def prompts(self, texts: Sequence[str], pictures: Shown, key: Hashable | None = None) -> PromptSet:
        """Return prompts ready to be batched.

        Args:
            texts: without chat template.
            pictures: gives prompt ``n`` 's images; asked once here and again where their features are not kept any more.
            key: names the prompts and images; what was made under the same key before is returned as it is.
        """
        if key is None:
            return self._ready(texts, pictures)
        made: PromptSet = _recalled(self._sets, key, lambda: self._ready(texts, pictures), _SETS)
        return made

    def _ready(self, texts: Sequence[str], pictures: Shown) -> PromptSet:
        made = PromptSet(tuple(texts), pictures)
        sizes, digests = [], []
        for n in range(len(texts)):
            shown = pictures(n)
            sizes.append(tuple((p.shape[1], p.shape[0]) if isinstance(p, np.ndarray) else p.size for p in shown))
            digests.append(tuple(map(image_digest, shown)))
        made.rendered = [self.render(text, len(size)) for text, size in zip(texts, sizes, strict=True)]
        rows = self._rows(made.rendered, sizes)
        made.rows = [Row(rows[n][0], digests[n], rows[n][1]) for n in range(len(texts))]
        return made

    def batch(
        self, prompts: PromptSet, numbers: Sequence[int], said: Mapping[int, Sequence[int]] | None = None, left: bool = True
    ) -> Inputs:
        """Return the model's inputs for some prompts of one layout.

        Args:
            prompts: made here.
            numbers: of B prompts.
            said: tokens of the reply so far, by prompt number: attended to, and of the text's type (0).
            left: on which side shorter rows are padded.

        Returns:
            Per-token inputs [B, L] with ``attention_mask``, and the features of all images.
        """
        rows = [prompts.rows[n] for n in numbers]
        more = [torch.tensor(said[n] if said else (), dtype=torch.long) for n in numbers]
        longest = max(row.length + len(tokens) for row, tokens in zip(rows, more, strict=True))
        inputs: Inputs = {}
        for name in rows[0].text:
            ids = name == "input_ids"
            each = []
            for row, tokens in zip(rows, more, strict=True):
                value = row.text[name]
                each.append(torch.cat([value, (tokens if ids else torch.zeros_like(tokens)).to(value.dtype)]))
            inputs[name] = torch.stack([_padded(value, longest, self.pad if ids else 0, left) for value in each])
            if ids:
                inputs["attention_mask"] = torch.stack([_padded(torch.ones_like(value), longest, 0, left) for value in each])
        shown = self._features(prompts, numbers) if rows[0].images else []
        for name in shown[0] if shown else ():
            inputs[name] = torch.cat([each[name] for each in shown])
        return inputs

    # ---- text --------------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def pad(self) -> int:
        """The token that fills up shorter rows."""
        tokenizer = self.processor.tokenizer
        return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def _special(self, rendered: str) -> bool:
        """Whether the tokenizer is to add its start token: the template may bring its own."""
        bos = self.processor.tokenizer.bos_token
        return bos is None or not rendered.startswith(bos)

    def _rows(self, rendered: Sequence[str], sizes: Sequence[tuple[Any, ...]]) -> dict[int, _Read]:
        """Tokenise prompts as the processor does, with blank images: (per-token inputs, layout) by number."""
        found: dict[int, _Read] = {}
        if not rendered:
            return found
        special = self._special(rendered[0])
        ids = self.processor.tokenizer(list(rendered), add_special_tokens=special)["input_ids"]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for n, tokens in enumerate(ids):
            groups.setdefault((len(tokens), sizes[n]), []).append(n)  # of one length, so that the processor need not pad
        for (_, size), members in groups.items():
            for start in range(0, len(members), _BULK):
                chosen = members[start : start + _BULK]
                blank = [Image.new("RGB", each) for each in size]
                with self._shown(len(chosen)):
                    made = self._process([rendered[n] for n in chosen], [blank] * len(chosen), special)
                text, features = _parted(made)
                layout = tuple((name, tuple(value.shape[1:]), value.is_floating_point()) for name, value in features.items())
                for position, n in enumerate(chosen):
                    kept = made["attention_mask"][position].bool()
                    found[n] = ({name: value[position][kept].clone() for name, value in text.items()}, (len(size), *layout))
        return found

    @contextmanager
    def _shown(self, count: int) -> Iterator[None]:
        """Preprocess the images of one prompt for all ``count`` of a call."""
        original = getattr(self.processor, "image_processor", None)
        if original is None:
            yield
            return
        self.processor.image_processor = _Blank(original, count)
        try:
            yield
        finally:
            self.processor.image_processor = original

    def _process(self, text: Sequence[str], shown: Sequence[Sequence[Picture]], special: bool) -> Inputs:
        images = {"images": shown} if shown[0] else {}  # a list per prompt: some processors count images by it
        return dict(self.processor(text=list(text), **images, return_tensors="pt", add_special_tokens=special).items())

    # ---- images ------------------------------------------------------------------------------------------------------------

    def _features(self, prompts: PromptSet, numbers: Sequence[int]) -> list[Inputs]:
        """Return the features of each prompt's images, tensors [its share of the batch's first dimension, ...]."""
        found: dict[tuple[str, ...], Inputs] = {}
        missing: dict[tuple[str, ...], int] = {}
        for n in numbers:
            images = prompts.rows[n].images
            kept = self.images.get(images)
            if kept is None:
                missing.setdefault(images, n)
            else:
                found[images] = kept
        groups: dict[int, list[int]] = {}
        for n in missing.values():
            groups.setdefault(prompts.rows[n].length, []).append(n)
        for chosen in groups.values():
            for n, features in zip(chosen, self._preprocess(prompts, chosen), strict=True):
                found[prompts.rows[n].images] = features
                self.images.put(prompts.rows[n].images, features)
        return [found[prompts.rows[n].images] for n in numbers]

    def _preprocess(self, prompts: PromptSet, chosen: Sequence[int]) -> list[Inputs]:
        """Preprocess the images of prompts of one length, together where the outputs can be told apart afterwards."""
        special = self._special(prompts.rendered[0])
        rendered = [prompts.rendered[n] for n in chosen]
        _, made = _parted(self._process(rendered, [list(prompts.pictures(n)) for n in chosen], special))
        if all(len(value) == len(chosen) for value in made.values()):
            return [{name: value[k : k + 1].clone() for name, value in made.items()} for k in range(len(chosen))]
        alone = []
        for n, text in zip(chosen, rendered, strict=True):
            alone.append(_parted(self._process([text], [list(prompts.pictures(n))], special))[1])
        return alone


def _parted(made: Inputs) -> tuple[Inputs, Inputs]:
    """Part a processor's outputs into those per token, the attention mask left out, and the features of images."""
    shape = made["input_ids"].shape
    text = {name: value for name, value in made.items() if value.shape == shape and name != "attention_mask"}
    return text, {name: value for name, value in made.items() if name not in text and name != "attention_mask"}


def _padded(row: torch.Tensor, length: int, filler: int, left: bool) -> torch.Tensor:
    """Pad [L] to [length] on one side."""
    spare = length - len(row)
    return torch.nn.functional.pad(row, (spare, 0) if left else (0, spare), value=filler) if spare else row


class Desks:
    """What a worker keeps for one model after another: a desk per kind of processor, the newest two, and what was asked."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, Desk] = OrderedDict()
        self._asked: OrderedDict[Hashable, Any] = OrderedDict()

    def of(self, processor: Any) -> Desk:
        """Return the desk of processors equal to this one."""
        known = identity(processor)
        desk: Desk = _recalled(self._held, known, lambda: Desk(processor), 2)  # teacher and student
        return desk

    def remember(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """Return what was made under ``key``, or make it."""
        made: _Made = _recalled(self._asked, key, make, _SETS)
        return made


def _recalled(held: OrderedDict[Any, Any], key: Hashable, make: Callable[[], Any], most: int) -> Any:
    if key not in held:
        held[key] = make()
        while len(held) > most:
            held.popitem(last=False)
    held.move_to_end(key)
    return held[key]
