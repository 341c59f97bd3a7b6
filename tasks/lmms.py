"""Any Hugging Face image-text-to-text checkpoint as an lmms-eval model, and its log-probabilities of gold answers.

Greedy decoding in batches; batch 1 is the reference. Prompts of exactly equal length share a batch. Where that leaves batches
nearly empty, prompts of like lengths share one with padding on the left, if a trial on this model gives the replies of each
alone. Replies that came so near to another one that rounding may decide are made again, alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray

from harness.base import UserError
from tasks import engine, predicting, replying
from tasks.checkpoint import load, verify
from tasks.prepared import Desk, Desks, Inputs, Picture, PromptSet
from tasks.prompting import prompts
from tasks.questions import Pixels

__all__ = ["CheckpointModel", "Share", "prompts", "verify"]

Floats32 = NDArray[np.float32]
Progress = Callable[[int, int], None]


class Share(Protocol):
    """How several processes that hold the same model divide its batches; whole batches move, so arithmetic is that of one."""

    def mine(self, number: int) -> bool:
        """Whether this process computes batch ``number``, counted from 0 in every call of the model."""

    def join(self, found: dict[int, Any]) -> dict[int, Any]:
        """Return the results by prompt number of all processes, on every process; every process calls it as often."""


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
        desks: Desks | None = None,
    ) -> None:
        """Load a checkpoint.

        Args:
            folder: Hugging Face folder (config, weights, processor with a chat template). Families that transformers does not
                know must have been registered with its Auto classes.
            batch_size: most prompts in one forward pass.
            device: where to run.
            dtype: of the weights; float32 for reproducible scores on CPU.
            progress: called with (prompts done, prompts in all) after every batch.
            share: which batches this process computes; all of them without one.
            desks: where prompts and images are kept ready for further models with an equal processor.

        Attributes:
            recall: applied to the processor's outputs on the host before they move to the device; it may put stored features
                of the images in place of their pixels.
            how: what the last replies and gold replies were computed with, for the record.

        Raises:
            UserError: naming what is missing or damaged.
        """
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; allowed: 1 or more")
        self.model, self.processor = load(Path(folder), dtype)
        self.model.to(device).eval()
        self.batch_size = batch_size
        self.progress = progress
        self.share = share
        self.desks = Desks() if desks is None else desks
        self.how: dict[str, dict[str, Any]] = {}
        self.recall: Callable[[Inputs], Inputs] | None = None
        tokenizer = self.processor.tokenizer
        stop = self.model.generation_config.eos_token_id
        stop = tokenizer.eos_token_id if stop is None else stop
        if stop is None or tokenizer.eos_token_id is None:
            raise UserError(f"{folder} names no end-of-sequence token, so replies would never end")
        self.stop = [int(token) for token in (stop if isinstance(stop, (list, tuple)) else [stop])]
        self._eos = int(tokenizer.eos_token_id)
        self._trials = replying.Trials()
        self._answers: dict[str, list[int]] = {}

    # ---- lmms-eval's interface ---------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[engine.Instance]) -> list[engine.GenerationResult]:
        """Return one reply per request, in the requests' order, with token counts (the end token counts as output)."""

        def shown(n: int) -> list[Picture]:
            _, _, doc_to_visual, doc_id, task, split = requests[n].args
            return list(doc_to_visual(self.task_dict[task][split][doc_id]))

        settings = [(int(r.args[1]["max_new_tokens"]), tuple(r.args[1]["until"])) for r in requests]
        asked = self.desk.prompts([str(request.args[0]) for request in requests], shown)
        return self.replies(asked, settings)

    def generate_until_multi_round(self, requests: list[engine.Instance]) -> list[str]:
        """Refuse: no protocol here has several rounds."""
        raise NotImplementedError("protocols here ask one question at a time")

    def loglikelihood(self, requests: list[engine.Instance]) -> list[tuple[float, bool]]:
        """Refuse: no protocol here ranks continuations; diagnostics use :meth:`gold_logprobs`."""
        raise NotImplementedError("protocols here generate; see gold_logprobs for likelihoods")

    def clean(self) -> None:
        """Keep the model: the inherited method deletes it, so it could be evaluated only once."""

    # ---- replies -----------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def desk(self) -> Desk:
        """Where this model's prompts are made ready; asked for after the processor has got its last setting."""
        return self.desks.of(self.processor)

    def replies(self, asked: PromptSet, settings: Sequence[tuple[int, tuple[str, ...]]]) -> list[engine.GenerationResult]:
        """Return one reply per prompt.

        Args:
            asked: prompts of :attr:`desk`.
            settings: per prompt the most new tokens, and the marks before which a reply is cut.
        """
        found: dict[int, replying.Reply] = {}
        numbers, padded = itertools.count(), False
        for limit in dict.fromkeys(limit for limit, _ in settings):
            chosen = [n for n, setting in enumerate(settings) if setting[0] == limit]
            made, left = replying.replies(self, self._trials, asked, chosen, limit, numbers)
            found.update(made)
            padded = padded or left
        alone = sum(reply.alone for reply in found.values())
        self.how["replies"] = {"padding": "left" if padded else "none", "made_again_alone": alone}
        results = []
        for n, (_, marks) in enumerate(settings):
            tokens = found[n].tokens
            text = self.processor.tokenizer.decode(tokens[:-1] if found[n].ended else tokens, skip_special_tokens=True)
            for mark in marks:
                text = text.split(mark)[0]
            counts = engine.TokenCounts(input_tokens=asked.rows[n].length, output_tokens=len(tokens))
            results.append(engine.GenerationResult(text.strip(), counts))
        return results

    def inputs(
        self, asked: PromptSet, batch: Sequence[int], said: Mapping[int, Sequence[int]] | None = None, left: bool = True
    ) -> Inputs:
        """Return a batch of prompts on the device; see :meth:`tasks.prepared.Desk.batch`."""
        made = self.desk.batch(asked, batch, said, left)
        made = made if self.recall is None else self.recall(made)
        return {key: value.to(self.model.device) for key, value in made.items()}

    @functools.cached_property
    def marks(self) -> frozenset[int]:
        """Tokens that stand for images and the like in prompts; a reply may hold them, but is then never read again."""
        named = {k: v for k, v in self.model.config.to_dict().items() if k.endswith(("_token_id", "_token_index"))}
        usual = ("bos", "eos", "pad", "sep", "unk")
        return frozenset(v for k, v in named.items() if isinstance(v, int) and not k.startswith(usual))

    def attention(self) -> str:
        """Return the attention kernels of the model's parts, as transformers names them."""
        config = self.model.config
        parts = [config, *(part for name in config.sub_configs if (part := getattr(config, name, None)) is not None)]
        kernels = (getattr(part, "_attn_implementation", None) for part in parts)
        return "+".join(sorted({str(kernel) for kernel in kernels if kernel is not None}))

    def mine(self, number: int) -> bool:
        """Whether this process computes batch ``number``."""
        return self.share is None or self.share.mine(number)

    def joined(self, found: dict[int, Any]) -> dict[int, Any]:
        """Return the results of all processes."""
        return found if self.share is None else self.share.join(found)

    # ---- diagnostics -------------------------------------------------------------------------------------------------------

    def answer_ids(self, answer: str) -> list[int]:
        """Return the tokens of a gold reply with its end token, as students are trained on them.

        Raises:
            UserError: for a reply without tokens, or one that the tokenizer joins with the prompt.
        """
        if answer not in self._answers:
            self._answers[answer] = self._answer_ids(answer)
        return self._answers[answer]

    def _answer_ids(self, answer: str) -> list[int]:
        tokenizer = self.processor.tokenizer
        if self._lead:  # a byte-level tokenizer has other tokens for a word after a space
            prompt = self.desk.render("", 0)
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
        prompt, said = self.desk.render("", 0), "yes"
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

    def gold_logprobs(self, prompts: Sequence[str], images: Sequence[Pixels | None], answers: Sequence[str]) -> list[Floats32]:
        """Return what the model predicts at each token of the gold replies, given prompt and preceding gold tokens.

        Args:
            prompts: without chat template.
            images: uint8 [H, W, 3], or None for a prompt without an image.
            answers: gold replies.

        Returns:
            Per prompt, float32 [tokens of the reply and its end token, V]: log-probabilities in nats.
        """

        def shown(n: int) -> list[Picture]:
            image = images[n]
            return [] if image is None else [image]

        return self.predictions(self.desk.prompts(prompts, shown), answers)

    def predictions(self, asked: PromptSet, answers: Sequence[str], reduce: predicting.Reduce | None = None) -> list[Any]:
        """Return :meth:`gold_logprobs` of prompts of :attr:`desk`, or what ``reduce`` keeps of each, given its number."""
        targets = [self.answer_ids(answer) for answer in answers]
        found, padded = predicting.predictions(self, self._trials, asked, targets, itertools.count(), reduce)
        self.how["gold"] = {"padding": "right" if padded else "none"}
        return [found[n] for n in range(len(answers))]
