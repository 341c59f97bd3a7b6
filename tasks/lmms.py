"""Any Hugging Face image-text-to-text checkpoint as an lmms-eval model, and its log-probabilities of gold answers.

Greedy decoding in batches without padding: only prompts of exactly equal token length and equal images' sizes share a
batch, so that no padding token ever enters a reply. Preprocessing is PIL's on every machine: the torchvision-backed
variants differ by up to 0.03 in normalised pixels.
"""

from __future__ import annotations

import functools
import itertools
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open

from harness.base import UserError
from tasks import engine
from tasks.prompting import prompts
from tasks.questions import Pixels

__all__ = ["CheckpointModel", "prompts"]

Floats32 = NDArray[np.float32]
Progress = Callable[[int, int], None]
_Picture = Image.Image | Pixels
_Shown = Callable[[int], list[_Picture]]


def verify(folder: str | Path) -> Path:
    """Return ``folder`` if it holds a whole checkpoint: configuration, and weight files that open.

    Pickles (pytorch_model.bin, as some checkpoints are published) are taken only where there are no safetensors, and opened
    without running what is in them.

    Raises:
        UserError: naming the file that is missing, truncated or damaged, or that has code in it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'} is missing: {folder} is not a Hugging Face checkpoint folder")
    weights, index = sorted(folder.glob("*.safetensors")), folder / "model.safetensors.index.json"
    if not weights and not index.is_file():
        weights, index = sorted(folder.glob("pytorch_model*.bin")), folder / "pytorch_model.bin.index.json"
    if index.is_file():
        try:
            listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError) as error:
            raise UserError(f"{index} is damaged ({type(error).__name__}: {error})") from error
        absent = sorted(listed - {path.name for path in weights})
        if absent:
            raise UserError(f"{folder / absent[0]} is missing, but {index.name} lists it")
    elif weights and weights[0].suffix == ".bin" and weights[0].name != "pytorch_model.bin":
        raise UserError(f"{index} is missing: {folder} holds parts of a model, and nothing says which parts there are")
    if not weights:
        raise UserError(f"{folder / 'model.safetensors'} is missing: the checkpoint has no weights")
    for path in weights:
        _open(path)
    return folder


def _open(path: Path) -> None:
    """Open a weight file without reading its weights."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is truncated or damaged ({error})") from error
    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is a pickle with code in it, which is never run; get the weights as safetensors, or convert them on a"
            " machine that may run that code"
        ) from error  # torch's own reason advises to run it
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _processor(library: Any, folder: Path) -> Any:
    """Return a checkpoint's processor with PIL's preprocessing of images."""
    try:
        return library.AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    # asked of the whole processor, PIL is asked of a video part too, which has no such variant; transformers 5.17 says it so
    except (ImportError, AttributeError):
        processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True)
        processor.image_processor = library.AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        return processor


def _load(folder: Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """Return model and processor of a checkpoint folder; see :func:`verify` for the errors."""
    import transformers

    verify(folder)
    library: Any = transformers  # its annotations say less than its documentation
    bars = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()  # one bar per student would tear the command's own
    try:
        model, report = library.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, weights_only=True
        )
        processor = _processor(library, folder)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{folder} cannot be loaded as an image-text-to-text checkpoint ({type(error).__name__}: {_reason(error)})"
        ) from error
    finally:
        if bars:
            library.utils.logging.enable_progress_bar()
    if report["missing_keys"]:
        raise UserError(f"{folder} lacks the weights {', '.join(sorted(report['missing_keys'])[:3])}")
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"{folder}: the processor has no chat template (chat_template.jinja), so prompts cannot be rendered")
    return model, processor


class Share(Protocol):
    """One of several processes that compute the batches of one evaluation."""

    def mine(self, number: int) -> bool:
        """Say whether this process computes batch ``number``."""

    def join(self, found: dict[int, Any]) -> dict[int, Any]:
        """Return the results of all processes by number of prompt, on every process, from those of this one."""


class CheckpointModel(engine.lmms):  # type: ignore[misc]
    """A checkpoint folder behind lmms-eval's "simple" model interface."""

    is_simple = True

    def __init__(
        self,
        folder: str | Path,
        batch_size: int = 64,
        device: str = "cpu",
        dtype: torch.dtype | str = torch.float32,
        progress: Progress | None = None,
        share: Share | None = None,
    ) -> None:
        """Load a checkpoint.

        Args:
            folder: Hugging Face folder (config, weights, processor with a chat template). Families that transformers does not
                know must have been registered with its Auto classes.
            batch_size: most prompts in one forward pass.
            device: where to run.
            dtype: of the weights; float32 for reproducible scores on CPU.
            progress: called with (prompts done, prompts in all) after every batch.
            share: what of the batches this process computes; None for all.

        Raises:
            UserError: naming what is missing or damaged.
        """
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; allowed: 1 or more")
        self.model, self.processor = _load(Path(folder), dtype)
        self.model.to(device).eval()
        self.batch_size = batch_size
        self.progress = progress
        self.share = share
        tokenizer = self.processor.tokenizer
        stop = self.model.generation_config.eos_token_id
        stop = tokenizer.eos_token_id if stop is None else stop
        if stop is None or tokenizer.eos_token_id is None:
            raise UserError(f"{folder} names no end-of-sequence token, so replies would never end")
        self._stop = [int(token) for token in (stop if isinstance(stop, (list, tuple)) else [stop])]
        self._eos = int(tokenizer.eos_token_id)

    # ---- lmms-eval's interface ---------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[engine.Instance]) -> list[engine.GenerationResult]:
        """Return one reply per request, in the requests' order, with token counts (the end token counts as output)."""
        texts, options = [], []
        for request in requests:
            prompt, generation = request.args[:2]
            texts.append(str(prompt))
            options.append((int(generation["max_new_tokens"]), tuple(generation["until"])))

        def shown(n: int) -> list[_Picture]:
            _, _, doc_to_visual, doc_id, task, split = requests[n].args
            return list(doc_to_visual(self.task_dict[task][split][doc_id]))

        results: dict[int, engine.GenerationResult] = {}
        done = 0
        numbers = itertools.count()
        for setting in dict.fromkeys(options):
            chosen = [n for n, option in enumerate(options) if option == setting]
            for batch, inputs in self._batches(texts, shown, chosen, numbers):
                if inputs is not None:
                    results.update(zip(batch, self._generate(inputs, *setting), strict=True))
                done += len(batch)
                if self.progress is not None:
                    self.progress(done, len(requests))
        return self._joined(results)

    def generate_until_multi_round(self, requests: list[engine.Instance]) -> list[str]:
        """Refuse: no protocol here has several rounds."""
        raise NotImplementedError("protocols here ask one question at a time")

    def loglikelihood(self, requests: list[engine.Instance]) -> list[tuple[float, bool]]:
        """Refuse: no protocol here ranks continuations; diagnostics use :meth:`gold_logprobs`."""
        raise NotImplementedError("protocols here generate; see gold_logprobs for likelihoods")

    def clean(self) -> None:
        """Keep the model: the inherited method deletes it, so it could be evaluated only once."""

    # ---- batches -----------------------------------------------------------------------------------------------------------

    def _render(self, prompt: str, count: int) -> str:
        """Return the chat-formatted text of a prompt with ``count`` images, up to where the reply starts."""
        content: list[dict[str, str]] = [{"type": "image"}] * count + [{"type": "text", "text": prompt}]
        turns = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _batches(
        self, texts: Sequence[str], pictures: _Shown, chosen: Sequence[int], numbers: Iterator[int] | None = None
    ) -> Iterator[tuple[list[int], dict[str, torch.Tensor] | None]]:
        """Yield the indices of prompts that need no padding together, and their model inputs; None for another process's.

        Images are asked for twice, once for their sizes: those of a full benchmark do not fit in memory.
        """
        sizes = {n: tuple(p.shape if isinstance(p, np.ndarray) else p.size for p in pictures(n)) for n in chosen}
        rendered = {n: self._render(texts[n], len(sizes[n])) for n in chosen}
        bos = self.processor.tokenizer.bos_token
        special = bos is None or not next(iter(rendered.values()), "").startswith(bos)  # the template may bring its own
        ids = self.processor.tokenizer(list(rendered.values()), add_special_tokens=special)["input_ids"]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for n, tokens in zip(rendered, ids, strict=True):
            groups.setdefault((len(tokens), sizes[n]), []).append(n)
        for members in groups.values():
            for start in range(0, len(members), self.batch_size):
                batch = members[start : start + self.batch_size]
                number = 0 if numbers is None else next(numbers)
                if self.share is not None and not self.share.mine(number):
                    yield batch, None
                    continue
                shown = [pictures(n) for n in batch]
                images = {"images": shown} if shown[0] else {}  # a list per prompt: some processors count images by it
                text = [rendered[n] for n in batch]
                made = self.processor(text=text, **images, return_tensors="pt", add_special_tokens=special)
                yield batch, {key: value.to(self.model.device) for key, value in made.items()}

    def _joined(self, found: dict[int, Any]) -> list[Any]:
        """Return the results of all processes in the prompts' order."""
        whole = found if self.share is None else self.share.join(found)
        return [whole[n] for n in sorted(whole)]

    @torch.inference_mode()
    def _generate(self, inputs: dict[str, torch.Tensor], limit: int, until: Sequence[str]) -> list[engine.GenerationResult]:
        import transformers

        tokenizer = self.processor.tokenizer
        pad = self._eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        library: Any = transformers
        greedy = library.GenerationConfig(
            max_new_tokens=limit, do_sample=False, num_beams=1, eos_token_id=self._stop, pad_token_id=pad, use_cache=True
        )
        start = inputs["input_ids"].shape[1]
        output = self.model.generate(**inputs, generation_config=greedy)[:, start:].tolist()
        results = []
        for tokens in output:
            ends = [position for position, token in enumerate(tokens) if token in self._stop]
            length = ends[0] + 1 if ends else len(tokens)
            text = tokenizer.decode(tokens[: ends[0]] if ends else tokens, skip_special_tokens=True)
            for mark in until:
                text = text.split(mark)[0]
            results.append(engine.GenerationResult(text.strip(), engine.TokenCounts(input_tokens=start, output_tokens=length)))
        return results

    # ---- diagnostics -------------------------------------------------------------------------------------------------------

    def answer_ids(self, answer: str) -> list[int]:
        """Return the tokens of a gold reply with its end token, as students are trained on them.

        Raises:
            UserError: for a reply without tokens, or one that the tokenizer joins with the prompt.
        """
        tokenizer = self.processor.tokenizer
        if self._lead:  # a byte-level tokenizer has other tokens for a word after a space
            prompt = self._render("", 0)
            before, whole = tokenizer([prompt, prompt + self._lead + answer], add_special_tokens=False)["input_ids"]
            if whole[: len(before)] != before:
                raise UserError(
                    f"the tokenizer joins the gold answer {answer!r} with the prompt; evaluate with diagnostics: false"
                )
            ids = whole[len(before) :]
        else:
            ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError(f"the gold answer {answer!r} has no tokens")
        return [*map(int, ids), self._eos]

    @functools.cached_property
    def _lead(self) -> str:
        """The white space that the chat template puts before a reply; none where it only renders prompts."""
        prompt, said = self._render("", 0), "yes"
        turns = [
            {"role": who, "content": [{"type": "text", "text": text}]} for who, text in (("user", ""), ("assistant", said))
        ]
        try:
            whole = str(self.processor.apply_chat_template(turns, add_generation_prompt=False, tokenize=False))
        except (UserError, jinja2.TemplateError):  # a format that is only ever asked
            return ""
        reply = whole.removeprefix(prompt)
        lead = reply[: len(reply) - len(reply.lstrip())]
        return lead if whole.startswith(prompt) and reply.startswith(lead + said) else ""

    @torch.inference_mode()
    def gold_logprobs(self, prompts: Sequence[str], images: Sequence[Pixels | None], answers: Sequence[str]) -> list[Floats32]:
        """Return what the model predicts at each token of the gold replies, given prompt and preceding gold tokens.

        Args:
            prompts: without chat template.
            images: uint8 [H, W, 3], or None for a prompt without an image.
            answers: gold replies.

        Returns:
            Per prompt, float32 [tokens of the reply and its end token, V]: log-probabilities in nats.
        """
        targets = [self.answer_ids(answer) for answer in answers]

        def shown(n: int) -> list[_Picture]:
            image = images[n]
            return [] if image is None else [image]

        results: dict[int, Floats32] = {}
        numbers = itertools.count()
        for length in dict.fromkeys(len(target) for target in targets):
            chosen = [n for n, target in enumerate(targets) if len(target) == length]
            for batch, inputs in self._batches(prompts, shown, chosen, numbers):
                if inputs is None:
                    continue
                # the last target is only ever predicted, so it is not fed
                fed = torch.tensor([targets[n][:-1] for n in batch], device=self.model.device)
                logits = self.model(**_extended(inputs, fed), use_cache=False).logits[:, -length:]
                values = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
                results.update(zip(batch, values, strict=True))
        return self._joined(results)


def _extended(inputs: dict[str, torch.Tensor], fed: torch.Tensor) -> dict[str, torch.Tensor]:
    """Append tokens [B, T] to every per-token input [B, L]: attended to, and of the text's type (0)."""
    shape = inputs["input_ids"].shape
    extra = {"input_ids": fed, "attention_mask": torch.ones_like(fed)}
    longer = {
        key: torch.cat([value, extra.get(key, torch.zeros_like(fed)).to(value.dtype)], dim=1)
        for key, value in inputs.items()
        if value.shape == shape
    }
    return {**inputs, **longer}
