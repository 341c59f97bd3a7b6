"""What a distiller needs of a vision-language model, whatever its family: one adapter, derived from in a small file each.

A family says where its parts are (:attr:`Adapter.tower`, :attr:`Adapter.projector`, :attr:`Adapter.language`), how its
checkpoint is loaded, and how a conversation becomes a row; the rest is here.
"""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base import UserError, unknown
from students import vocabulary
from students.data.conversations import Picture, Row
from students.data.pack import Batch
from students.models._attention import first_attention
from students.models._collate import Side, collate
from students.models._rows import RowReader

TAPS = ("attention", "vision", "vision_logits")
PARTS = ("language", "projector", "tower")
#: The linear layers of a decoder block that LoRA may target, by the names that Llama and Qwen2 share.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: Language models in which every layer attends to all tokens before.
_CAUSAL = frozenset({"llama", "mobilevlm"})


class Adapter(RowReader):
    """One model with its processor.

    Attributes:
        model: a ``PreTrainedModel`` with an ``lm_head``.
        processor: its processor; ``processor.tokenizer`` is the tokenizer.
        family: the ``model_type`` that messages name.
        splits: whether features of the tower [I, n, C] may stand where pixels [I, 3, H, W] go in; see :meth:`features`.
    """

    splits: ClassVar[bool] = False

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor
        self.learn(("language", "projector"))

    @classmethod
    @abc.abstractmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Load a checkpoint folder.

        Raises:
            UserError: naming the folder when weights, configuration or processor are missing or damaged.
        """

    # ---- parts -------------------------------------------------------------------------------------------------------------

    @property
    @abc.abstractmethod
    def tower(self) -> Any:
        """The vision tower; frozen unless :meth:`learn` says otherwise."""

    @property
    @abc.abstractmethod
    def projector(self) -> Any:
        """The projector from vision features to the language model's width; may be a module inside the tower."""

    @property
    @abc.abstractmethod
    def language(self) -> Any:
        """The language model without its head; ``language.layers`` are its blocks."""

    @property
    def text_config(self) -> Any:
        """Configuration of the language model."""
        return self.model.config.text_config

    @property
    def image_token(self) -> int:
        """Id of the token that stands for image features."""
        return int(self.model.config.image_token_id)

    @property
    def hidden_size(self) -> int:
        """Width of the language model, in channels."""
        return int(self.text_config.hidden_size)

    @property
    @abc.abstractmethod
    def vision_tokens(self) -> int | None:
        """n_v, the number of tokens an image takes; None where it depends on the image."""

    @property
    def vocabulary_size(self) -> int:
        """V, the number of logits."""
        return int(self.text_config.vocab_size)

    def tokens(self) -> tuple[str, ...]:
        """Return the real vocabulary in id order; see :func:`students.vocabulary.tokens`."""
        return vocabulary.tokens(self.processor.tokenizer)

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Full names of the modules that LoRA may target: attention and MLP linears of the language model, in order."""
        inside = {id(module) for module in self.language.modules()}
        return tuple(
            name
            for name, module in self.model.named_modules()
            if id(module) in inside and name.rpartition(".")[2] in LINEAR and isinstance(module, torch.nn.Linear)
        )

    def learn(self, parts: Collection[str]) -> None:
        """Make exactly these of :data:`PARTS` trainable and freeze the rest. The head belongs to the language model.

        Raises:
            UserError: (a ``KeyError`` too) for an unknown part.
        """
        for part in parts:
            if part not in PARTS:
                raise unknown("part of a model", part, PARTS)
        projector = {id(p) for p in self.projector.parameters()}
        tower = {id(p) for p in self.tower.parameters()} - projector
        for parameter in self.model.parameters():
            part = "projector" if id(parameter) in projector else "tower" if id(parameter) in tower else "language"
            parameter.requires_grad_(part in parts)

    def trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the parameters that learn, by name."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def frozen(self) -> list[tuple[str, torch.nn.Parameter]]:
        """Return the parameters that do not learn, by name."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if not parameter.requires_grad]

    # ---- data --------------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Preprocess uint8 pictures [H, W, 3] into float32 [I, 3, H, W], for packed rows.

        Raises:
            UserError: for a family that makes no such tensor of an image.
        """

    def inputs(self, pictures: Sequence[Picture]) -> Tensor:
        """Make what goes in for images: uint8 pictures become pixels [I, 3, H, W], features stay what they are [I, n, C].

        Raises:
            UserError: for features where the family takes none (:attr:`splits`).
            ValueError: for pictures and features together, whose order would be lost.
        """
        seen = [picture for picture in pictures if isinstance(picture, Tensor)]
        if not seen:
            return self.pixels([picture for picture in pictures if not isinstance(picture, Tensor)])
        if not self.splits:
            raise UserError(f"the tower of this {self.family} is not run apart, so it takes no stored features")
        if len(seen) != len(pictures):
            raise ValueError(f"{len(seen)} of {len(pictures)} images of a row are stored features; needed: all or none")
        return torch.stack(seen)

    def collate(self, rows: Sequence[Row], indices: Sequence[int], side: Side = "right") -> Batch:
        """Pad rows into one batch, one sample a row; attention mask [R, L], position ids None.

        Args:
            rows: from :meth:`row`.
            indices: the rows' numbers in the corpus.
            side: where the padding goes: "right" or "left".
        """
        return collate(rows, indices, pad=self._pad(), image_token=self.image_token, join=self.join, side=side)

    def join(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Join the rows' pixels into the model's inputs, for rows of which at least one has an image.

        Here: concatenated along the first axis, which counts images.
        """
        shown = [row.pixels for row in rows if row.pixels]
        return {name: torch.cat([pixels[name] for pixels in shown]) for name in shown[0]}

    def _pad(self) -> int:
        tokenizer = self.processor.tokenizer
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if pad is None:
            raise UserError(f"the tokenizer of this {self.family} names neither a padding nor an end token")
        return int(pad)

    # ---- forward passes ----------------------------------------------------------------------------------------------------

    def hidden(self, batch: Batch) -> Tensor:
        """Run the model without its head; last hidden states [R, L, H]."""
        return torch.as_tensor(self._run(batch).last_hidden_state)

    def observe(self, batch: Batch, wanted: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the model once, keeping the features that are asked for beside the last hidden states.

        Args:
            batch: the rows.
            wanted: names of taps; nothing is computed for those that are not named.

        Returns:
            Exactly the states of :meth:`hidden` [R, L, H], and with I images in the batch, n_v vision tokens an image and V
            logits: "vision" [I, n_v, H] (the projector's output), "vision_logits" [I, n_v, V] (the head at the vision
            tokens, gathered before it), "attention" [B, Q, n_v, heads] and "attention_mask" [B, Q] (see :meth:`attention`).
            All carry gradient where the model's parameters ask for it.

        Raises:
            UserError: (a ``KeyError`` too) for an unknown tap; for any tap of a family whose images take variable numbers of
                tokens.
        """
        self._known(wanted)
        n_v = self._fixed() if wanted else 0
        output = self._run(batch)
        hidden = torch.as_tensor(output.last_hidden_state)
        if not wanted:
            return hidden, {}
        if batch.pixel_values is None:  # no image: slices without elements, so that they are still part of the graph
            vision = hidden[:0, :1].expand(0, n_v, -1)
        else:
            vision = torch.as_tensor(output.image_hidden_states).reshape(-1, n_v, self.hidden_size)
        taps = {"vision": vision} if "vision" in wanted else {}
        if "vision_logits" in wanted:
            taps["vision_logits"] = self._vision_logits(hidden, batch)
        if "attention" in wanted:
            taps["attention"], taps["attention_mask"] = self.attention(batch, vision)
        return hidden, taps

    @abc.abstractmethod
    def vision(self, pixel_values: Tensor) -> Tensor:
        """Run tower and projector: [I, 3, H, W] -> [I, n_v, H]; the projector alone where given features [I, n, C]."""

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        """Run the tower: [I, 3, H, W] -> [I, n, C], exactly what the projector reads.

        Wherever this model takes pixels, it takes these in their place.

        Raises:
            UserError: for a family whose tower is not run apart.
        """
        if not self.splits:
            raise UserError(f"the tower of this {self.family} is not run apart from its projector")
        read: list[Tensor] = []
        hook = self.projector.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        try:
            self.vision(pixel_values)
        finally:
            hook.remove()
        (found,) = read
        return found

    def tower_settings(self) -> dict[str, Any]:
        """Return what shapes the tower's features beside its weights: sizes, layer, which tokens.

        Raises:
            UserError: for a family whose tower is not run apart.
        """
        raise UserError(f"the tower of this {self.family} is not run apart from its projector")

    def attention(self, batch: Batch, vision: Tensor) -> tuple[Tensor, Tensor]:
        """Recompute the first decoder layer's attention from each sample's own text to its image.

        Only this one map is made, so the model itself keeps its fast attention (METHOD 2.3, Align-KD).

        Args:
            batch: the rows.
            vision: the images' projected tokens [I, n_v, H].

        Returns:
            Probabilities [B, Q, most * n_v, heads], at least float32, over the tokens of a row's images one after the other
            (``most``: of the row that shows most), zero for images that a row does not have or that follow the query (its
            other probabilities go to text, so they sum to less than one); and [B, Q] bool, False beyond a sample's last token.

        Raises:
            UserError: for an attention class that is not known, or images of variable numbers of tokens.
        """
        return first_attention(self.language, self.embed(batch.input_ids, vision), batch, self._columns(batch))

    def embed(self, ids: Tensor, vision: Tensor) -> Tensor:
        """Return what enters the first layer [R, L, H]: embeddings of ids [R, L], vision tokens [I, n_v, H] in their places."""
        embeds = torch.as_tensor(self.model.get_input_embeddings()(ids))
        if not len(vision):
            return embeds
        return embeds.masked_scatter((ids == self.image_token)[..., None], vision.to(embeds.dtype))

    def tap_width(self, name: str) -> int:
        """Size of a tap's last axis: channels for "vision", V for "vision_logits", heads for "attention".

        Raises:
            UserError: (a ``KeyError`` too) for an unknown tap.
        """
        self._known((name,))
        heads = int(self.text_config.num_attention_heads)
        return {"vision": self.hidden_size, "vision_logits": self.vocabulary_size, "attention": heads}[name]

    @staticmethod
    def _known(wanted: Iterable[str]) -> None:
        for name in sorted(wanted):
            if name not in TAPS:
                raise unknown("tap", name, TAPS)

    def _fixed(self) -> int:
        if self.vision_tokens is None:
            raise UserError(
                f"an image takes a variable number of tokens for this {self.family}, so it has no taps; energies that compare"
                " features (fd, align_kd, llava_kd) need families with a fixed number, as llava and mobilevlm have"
            )
        return self.vision_tokens

    def _columns(self, batch: Batch) -> Tensor:
        """Columns [R, most * n_v] of each row's images, -1 beyond its last. Asks nothing of the GPU."""
        width = self._fixed() * max((1, *batch.pictures))
        places = batch.input_ids == self.image_token
        columns = places.byte().argsort(dim=1, descending=True, stable=True)[:, :width]
        columns = columns.masked_fill(~places.gather(1, columns), -1)
        return torch.nn.functional.pad(columns, (0, width - columns.shape[1]), value=-1)  # a short text-only batch

    def _vision_logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Apply the head at the vision tokens alone: [I, n_v, V], images in row order."""
        n_v = self._fixed()
        if batch.pixel_values is None:
            return self.head(hidden[:0, :1].expand(0, n_v, -1))
        places = batch.input_ids == self.image_token
        if batch.pictures:
            shown = [(row, slot) for row, count in enumerate(batch.pictures) for slot in range(count)]
            order = places.byte().argsort(dim=1, descending=True, stable=True)
            rows = torch.tensor([row for row, _ in shown], device=hidden.device)
            slots = torch.tensor([slot * n_v for _, slot in shown], device=hidden.device)
            columns = order[rows[:, None], slots[:, None] + torch.arange(n_v, device=hidden.device)]
        else:
            rows = places.any(1).byte().argsort(descending=True, stable=True)[: len(batch.pixel_values)]
            columns = self._columns(batch)[rows]
        return self.head(hidden[rows[:, None], columns])

    def _run(self, batch: Batch) -> Any:
        mask = batch.attention_mask
        if batch.padded and self.text_config.model_type in _CAUSAL and self.text_config._attn_implementation == "sdpa":
            # what transformers makes of it, without asking the device first whether there is any padding
            width = mask.shape[1]
            mask = mask.new_ones(width, width).tril() & mask[:, None, None, :]
        return self.model.model(
            input_ids=batch.input_ids, pixel_values=batch.pixel_values, attention_mask=mask,
            position_ids=batch.position_ids, use_cache=False, **batch.inputs,
        )  # fmt: skip

    def supervised(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Gather the states [N, H] that predict the supervised tokens, before the head sees anything."""
        return hidden[batch.row, batch.column]

    def prompt_state(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Gather the state [B, H] at each sample's last prompt position."""
        return hidden[batch.prompt_row, batch.prompt_column]

    def head(self, states: Tensor) -> Tensor:
        """Project states [N, H] to logits [N, V]."""
        return torch.as_tensor(self.model.lm_head(states))

    def save(self, folder: str | Path) -> None:
        """Write a Hugging Face folder that ``from_pretrained`` loads with no code of ours."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def common_vision_tokens(student: Adapter, teacher: Adapter) -> int:
    """Return n_v where both models make the same fixed number of tokens of an image.

    Raises:
        UserError: naming both families and what they make of an image.
    """
    if student.vision_tokens is None or teacher.vision_tokens is None:
        mine, other = ("a variable number of" if a.vision_tokens is None else a.vision_tokens for a in (student, teacher))
        raise UserError(
            f"an image takes {mine} tokens for the student ({student.family}) and {other} tokens for the teacher"
            f" ({teacher.family}); energies that compare features (fd, align_kd, llava_kd) need the same fixed number for both"
        )
    if student.vision_tokens != teacher.vision_tokens:
        raise UserError(
            f"an image takes {student.vision_tokens} tokens for the student and {teacher.vision_tokens} for the teacher; taps"
            " compare them one to one, so both need the same image size and patch size"
        )
    return student.vision_tokens
