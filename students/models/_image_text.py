"""Any model of transformers' image-text-to-text classes, fed through its own processor.

The processor alone decides what an image becomes: how many tokens, what stands between them, how it is cut. Here the replies
are found in what it makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base import UserError, digest, shim
from students.data.conversations import Conversation, Picture, Whole
from students.models._base import Adapter
from students.models._load import pretrained
from students.models._template import Script, script, special_tokens

shim()  # before transformers' image classes look for torchvision

Ids = NDArray[np.int64]
#: What a processor returns per token, and a row keeps elsewhere or the batch makes anew.
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class ImageTextAdapter(Adapter):
    """A model with its parts in ``model.model`` and a processor with a chat template.

    Attributes:
        TOWER, PROJECTOR, LANGUAGE: where the parts are, as dotted names below ``model.model``.
    """

    TOWER: ClassVar[str]
    PROJECTOR: ClassVar[str]
    LANGUAGE: ClassVar[str]

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """Load a checkpoint folder.

        Raises:
            UserError: naming the folder when weights, configuration or processor are missing or damaged.
        """
        model, processor = pretrained(Path(folder), dtype)
        return cls(model.to(device).eval(), processor)

    @property
    def tower(self) -> Any:
        """The vision tower."""
        return self.model.model.get_submodule(self.TOWER)

    @property
    def projector(self) -> Any:
        """The projector from vision features to the language model's width."""
        return self.model.model.get_submodule(self.PROJECTOR)

    @property
    def language(self) -> Any:
        """The language model without its head."""
        return self.model.model.get_submodule(self.LANGUAGE)

    @property
    def vision_tokens(self) -> int | None:
        """None: how many tokens an image takes depends on its size."""
        return None

    def pixels(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:  # noqa: ARG002 - refused
        """Refuse: packed rows need families that make one tensor of every image."""
        raise UserError(
            f"questions about one image cannot share a row for this {self.family}, whose images take variable numbers of"
            " tokens; train it on a corpus (one conversation a row)"
        )

    def vision(self, pixel_values: Tensor) -> Tensor:
        """Run tower and projector: [I, 3, H, W] -> [I, n_v, H].

        Raises:
            UserError: where images take variable numbers of tokens.
        """
        self._fixed()
        found = self.model.model.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output
        return torch.stack(list(found))

    # ---- rows --------------------------------------------------------------------------------------------------------------

    def read(self, conversation: Conversation, pictures: Sequence[Picture] | None) -> tuple[Whole, dict[str, Tensor] | None]:
        """Tokenise one conversation whole; see :meth:`students.models._rows.RowReader.read`."""
        name, count = conversation.id, len(conversation.images)
        if pictures is not None and len(pictures) != count:
            raise UserError(f"row {name!r} names {count} image(s) and comes with {len(pictures)}")
        rendered = script(self.processor, conversation, self.family)
        whole, raw, spans = self._tokens(rendered)
        images = np.flatnonzero(raw == self.image_token)
        if len(images) != count:
            raise UserError(
                f"row {name!r} renders to {len(images)} image token(s) for {count} image(s); its text must"
                f" not contain {self.processor.image_token!r}"
            )
        inputs: dict[str, Tensor] | None = None
        if not count:
            ids, inputs = raw, {}
        elif pictures is None or any(isinstance(picture, Tensor) for picture in pictures):
            # as the processor does, which needs no pixels where their number is fixed
            ids = np.repeat(raw, np.where(raw == self.image_token, self._fixed(), 1))
        else:
            ids, inputs = self._expanded(rendered.text, pictures, whole, name)
        places = self._places(raw, ids)
        supervised = np.zeros(len(ids), np.bool_)
        supervised[places[spans]] = True
        return Whole(ids, supervised, places[images]), inputs

    def reading(self) -> dict[str, Any]:
        """Return what shapes a row's tokens: tokenizer, chat template, and where images vary in tokens how they are cut."""
        processor, tokenizer = self.processor, self.processor.tokenizer
        if not tokenizer.is_fast:
            raise UserError(f"the tokenizer of this {self.family} cannot say where its tokens are; it needs a tokenizer.json")
        template = getattr(processor, "chat_template", None) or tokenizer.chat_template
        if "strftime_now" in str(template):
            raise UserError(f"the chat template of this {self.family} writes the date, so its rows are others every day")
        coding = json.loads(tokenizer.backend_tokenizer.to_str())
        found = {
            "vocabulary": digest({name: value for name, value in coding.items() if name not in ("padding", "truncation")}),
            "template": template,
            "marks": [tokenizer.bos_token, tokenizer.eos_token, sorted(special_tokens(tokenizer)), self.image_token],
            "image_tokens": self.vision_tokens,
        }
        if self.vision_tokens is None:
            own = {name: value for name, value in vars(processor).items() if isinstance(value, str | int | float)}
            found |= {"processor": type(processor).__name__, "settings": own, "images": processor.image_processor.to_dict()}
        return found

    def images(self, whole: Whole, end: int, pictures: Sequence[Picture], name: str) -> dict[str, Tensor]:
        """Preprocess a row's images, and see that they take the tokens it has; see :meth:`RowReader.images`."""
        if any(isinstance(picture, Tensor) for picture in pictures):
            return {"pixel_values": self.inputs(pictures)}
        found = int((whole.ids[:end] == self.image_token).sum())
        if self.vision_tokens is not None:
            made, inputs = self.vision_tokens * len(pictures), self._preprocessed(pictures, name)
        else:
            again, inputs = self._processed(self.processor.image_token * len(pictures), pictures, name)
            made = int((again == self.image_token).sum())
        if made != found and len(pictures) < len(whole.starts):
            raise UserError(
                f"row {name!r} is cut to {len(pictures)} image(s), of which this {self.family} makes another number of tokens"
                " than where more follow; raise max_length or drop the row"
            )
        if made != found:
            raise UserError(
                f"row {name!r} was tokenised with {found} image tokens, and its {len(pictures)} image(s) take {made} now;"
                " its files were changed since"
            )
        return inputs

    def _tokens(self, rendered: Script) -> tuple[bool, Ids, Ids]:
        """Tokenise text whose images are one placeholder each.

        Returns:
            Whether the tokenizer adds its own first token (the template brings none), the ids, and the indices of those that
            belong to replies; one that straddles the start of a reply is the reply's.
        """
        tokenizer = self.processor.tokenizer
        first = tokenizer.bos_token
        add = first is None or not rendered.text.startswith(first)
        if not tokenizer.is_fast:
            raise UserError(f"the tokenizer of this {self.family} cannot say where its tokens are; it needs a tokenizer.json")
        made = tokenizer(rendered.text, add_special_tokens=add, return_offsets_mapping=True)
        offsets = np.array(made["offset_mapping"], np.int64).reshape(-1, 2)
        inside = np.zeros(len(offsets), np.bool_)
        for start, end in rendered.spans:
            inside |= (offsets[:, 1] > start) & (offsets[:, 0] < end)
        return add, np.array(made["input_ids"], np.int64), np.flatnonzero(inside)

    def _processed(self, text: str, pictures: Sequence[Picture], name: str, add: bool = False) -> tuple[Ids, dict[str, Tensor]]:
        """Call the processor on one text with its images: ids with image tokens expanded, and its image inputs."""
        with self._accepting(pictures, name):
            made = self.processor(text=[text], images=[_drawn(pictures)], add_special_tokens=add, return_tensors="pt")
        inputs = {key: torch.as_tensor(value) for key, value in made.items() if key not in _PER_TOKEN}
        return made["input_ids"][0].numpy().astype(np.int64), inputs

    def _preprocessed(self, pictures: Sequence[Picture], name: str) -> dict[str, Tensor]:
        """Call the processor's part for images alone, as it does itself where they take a fixed number of tokens."""
        with self._accepting(pictures, name):
            made = self.processor.image_processor(images=[_drawn(pictures)], return_tensors="pt")
        return {key: torch.as_tensor(value) for key, value in made.items()}

    @contextmanager
    def _accepting(self, pictures: Sequence[Picture], name: str) -> Iterator[None]:
        """Name the row and its images where the processor refuses them."""
        try:
            yield
        except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:
            reason = (str(error).strip().splitlines() or ["no message"])[0]
            sizes = ", ".join(f"{p.shape[1]}x{p.shape[0]}" for p in pictures)
            raise UserError(
                f"the processor of this {self.family} refuses the image(s) of row {name!r} ({sizes};"
                f" {type(error).__name__}: {reason})"
            ) from error

    def _expanded(self, text: str, pictures: Sequence[Picture], add: bool, name: str) -> tuple[Ids, dict[str, Tensor]]:
        """Return ids and image inputs, after a look at the number of image tokens where it is fixed."""
        ids, inputs = self._processed(text, pictures, name, add)
        expected, found = self.vision_tokens, int((ids == self.image_token).sum())
        if expected is not None and found != expected * len(pictures):
            raise UserError(
                f"the processor of this {self.family} makes {found} tokens of {len(pictures)} image(s), and the model"
                f" {expected} of each; patch_size, num_additional_image_tokens and vision_feature_select_strategy in"
                " processor_config.json must be the model's"
            )
        return ids, inputs

    def _places(self, raw: Ids, ids: Ids) -> Ids:
        """Say where each token of ``raw`` (one token an image) stands in ``ids`` (as the processor expanded it).

        Text between images must be the same in both; an image's place is where what it became starts.

        Raises:
            UserError: for a processor that changes the text round an image.
        """
        places = np.empty(len(raw), np.int64)
        cuts = np.flatnonzero(raw == self.image_token)
        starts, ends = np.concatenate([[0], cuts + 1]), np.concatenate([cuts, [len(raw)]])
        cursor = 0
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            piece = raw[start:end]
            if number:
                places[start - 1] = cursor
                seen = np.flatnonzero(ids[cursor:] == self.image_token)
                after = cursor + int(seen[0]) + 1 if len(seen) else len(ids)
                last = number == len(cuts)
                cursor = len(ids) - len(piece) if last else _find(ids, piece, after, self.image_token)
                if cursor < after:
                    raise self._changed()
            if not np.array_equal(ids[cursor : cursor + len(piece)], piece):
                raise self._changed()
            places[start:end] = np.arange(cursor, cursor + len(piece))
            cursor += len(piece)
        if cursor != len(ids):
            raise self._changed()
        return places

    def _changed(self) -> UserError:
        return UserError(f"the processor of this {self.family} changes the text round an image, so replies cannot be found")


def _drawn(pictures: Sequence[Picture]) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(np.asarray(picture)) for picture in pictures]


def _find(ids: Ids, piece: Ids, after: int, image_token: int) -> int:
    """Return the first place from ``after`` on, right behind image tokens or what ends them, that holds ``piece``; or -1."""
    if not len(piece):
        return after
    wanted, width = piece.tobytes(), ids.itemsize
    everything, at = ids.tobytes(), after * width
    while (at := everything.find(wanted, at)) >= 0:
        if at % width == 0:
            follows = at // width + len(piece)
            # what follows is the next image, so the piece must not be a chance match inside the previous one
            if follows < len(ids) and image_token in ids[follows:]:
                return at // width
        at += 1
    return -1
