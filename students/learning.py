"""What of a student learns, and proof that the rest did not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.base import digest
from students import lora, models, recompute
from students.checkpoint import digest_tensors
from students.sharding import like, whole

if TYPE_CHECKING:
    from students.models._base import Adapter
    from students.options import DistilOptions


class Learning:
    """Sets up what learns: parts or LoRA matrices, in float32; the rest is frozen, and digested before and after.

    Args:
        adapter: the student, changed in place.
        base: the checkpoint folder that it came from, whose frozen values are saved again.
        options: of the training.
        seed: of the start of LoRA's matrices.

    Raises:
        UserError: for LoRA targets that the model does not have.
    """

    def __init__(self, adapter: Adapter, base: Path, options: DistilOptions, seed: int) -> None:
        self.adapter, self.base, self.lora, self.options = adapter, base, options.lora, options
        self.rounded = options.frozen_dtype == "bfloat16"
        adapter.learn(options.learn)
        if options.lora is not None:
            lora.attach(adapter, options.lora, seed)
        if self.rounded:
            for _, parameter in adapter.frozen():
                if parameter.ndim > 1:  # norms and biases are small, and norms take no half-precision weights everywhere
                    parameter.data = parameter.data.to(torch.bfloat16)
            # transformers takes the first parameter's type for the model's, and casts image features to it
            first, embedding = next(adapter.model.parameters()), adapter.model.get_input_embeddings().weight
            first.data = first.data.to(embedding.dtype)
        recompute.enable(adapter.model, options.gradient_checkpointing)
        self.teacher: Adapter | None = None
        self.before = self._digests()

    def watch(self, teacher: Adapter) -> None:
        """Hold a live teacher to the same: nothing of it may change."""
        self.teacher = teacher
        self.before |= self._digests_of_teacher()

    def _still(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that must not change: frozen parameters, and saved buffers of modules that learn nothing."""
        yield from self.adapter.frozen()
        saved = self.adapter.model.state_dict().keys()
        for prefix, module in self.adapter.model.named_modules():
            if not any(p.requires_grad for p in module.parameters(recurse=False)):
                names = ((f"{prefix}.{name}" if prefix else name, b) for name, b in module.named_buffers(recurse=False))
                yield from ((name, b) for name, b in names if name in saved)

    def _digests(self) -> dict[str, str]:
        return {name: digest_tensors([(name, whole(tensor))]) for name, tensor in self._still()}

    def _digests_of_teacher(self) -> dict[str, str]:
        named = self.teacher.model.state_dict().items() if self.teacher is not None else ()
        return {f"teacher: {name}": digest_tensors([(name, tensor)]) for name, tensor in named}

    def check(self) -> None:
        """Compare the frozen tensors with what they were.

        Raises:
            RuntimeError: naming those that changed.
        """
        after = self._digests() | self._digests_of_teacher()
        changed = sorted(name for name, value in self.before.items() if after.get(name) != value)
        if changed:
            raise RuntimeError(f"{len(changed)} frozen tensor(s) changed in training: {', '.join(changed[:5])}")

    def state(self) -> dict[str, Tensor]:
        """Return the parameters that learn, and the saved buffers beside them, for a resume point."""
        still = {name for name, _ in self._still()}
        kept = {name: tensor.detach() for name, tensor in self.adapter.model.state_dict().items() if name not in still}
        learn = {name for name, _ in self.adapter.trainable()}
        buffers = {name for name, _ in self.adapter.model.named_buffers()}
        return {name: tensor for name, tensor in kept.items() if name in learn | buffers}  # no tied copies

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what :meth:`state` returned, each tensor whole, also where the model's are sharded over ranks."""
        here = self.adapter.model.state_dict()
        with torch.no_grad():
            for name, tensor in state.items():
                here[name].copy_(like(tensor, here[name]))

    def again(self, state: dict[str, Tensor], seed: int) -> Learning:
        """Return the student made again from its base, on the CPU, with ``state`` in the place of what learned."""
        made = Learning(models.load(self.base), self.base, self.options, seed)
        made.restore({name: tensor.cpu() for name, tensor in state.items()})
        if self.teacher is not None:
            made.watch(self.teacher)
        return made

    def _exact(self) -> None:
        """Give frozen parameters the base's values again, of which training kept a rounded copy."""
        kept = models.load(self.base).model.state_dict()
        for name, parameter in self.adapter.frozen():
            parameter.data = kept[name.replace(lora.INSIDE, "")].to(parameter.device)

    def save(self, out: Path) -> dict[str, Any]:
        """Write ``student/`` into ``out``, merged and plain, and ``adapter/`` where LoRA was used; return the facts.

        Raises:
            RuntimeError: when a frozen tensor changed.
        """
        self.check()
        learned = [p.numel() for _, p in self.adapter.trainable()]
        facts = {
            "learned": {"tensors": len(learned), "parameters": sum(learned)},
            "frozen": {"tensors": len(self.before), "sha256": digest(self.before)},
        }
        if self.rounded:
            self._exact()
        if self.lora is not None:
            lora.save(self.adapter, out / "adapter")
            lora.merge(self.adapter)
        self.adapter.save(out / "student")
        return facts
