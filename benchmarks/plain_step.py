"""One distillation step as common scripts write it, to be measured against: nothing here is used by the harness.

The teacher runs beside every student, towers included; both models make the logits of every position; cross-entropy and KL are
taken at every position and masked; autograd keeps what it keeps. Hugging Face's models, its own loss-free forward pass, fused
``log_softmax`` and ``kl_div``, one optimiser: an honest script, without the mistakes that METHOD.md lists.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

if TYPE_CHECKING:
    from students.data.pack import Batch

IGNORED = -100


class Plain:
    """A student that learns from the labels and, by KL, from a live teacher.

    Args:
        base, teacher: checkpoint folders.
        lr, clip: AdamW's rate, and the largest norm of the gradient.
        again: recompute the student's blocks in the backward pass instead of keeping their activations.
    """

    def __init__(self, base: Path, teacher: Path, lr: float, clip: float, again: bool = False) -> None:
        from transformers import AutoModelForImageTextToText

        self.student = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
        self.student.model.vision_tower.requires_grad_(False)
        self.teacher = AutoModelForImageTextToText.from_pretrained(teacher, dtype=torch.float32).eval().requires_grad_(False)
        self.learned = [p for p in self.student.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.learned, lr=lr, weight_decay=0.0)
        self.clip = clip
        self.said: dict[str, Tensor] = {}  # the latest losses
        self.student.train()
        if again:
            model = self.student
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})

    def labels(self, batch: Batch) -> Tensor:
        """Return [R, L]: the token that each position must predict, -100 where none is learned."""
        labels = torch.full_like(batch.input_ids, IGNORED)
        labels[batch.row, batch.column] = batch.labels
        return labels

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one optimiser step on rows without padding; return the losses, detached."""
        labels = self.labels(batch)
        inputs = {"input_ids": batch.input_ids, "pixel_values": batch.pixel_values, "use_cache": False}
        with torch.no_grad():
            theirs = self.teacher(**inputs).logits
        mine = self.student(**inputs).logits
        ce = cross_entropy(mine.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        each = kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1)
        mask = (labels != IGNORED).float()
        fkl = (each * mask).sum() / mask.sum()
        (ce + fkl).backward()
        torch.nn.utils.clip_grad_norm_(self.learned, self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.said = {"ce": ce.detach(), "fkl": fkl.detach()}
        return self.said

    def standing_bytes(self) -> int:
        """Bytes of both models' weights and of the optimiser's state."""
        own = [t for m in (self.student, self.teacher) for t in (*m.parameters(), *m.buffers())]
        state = [v for s in self.optimiser.state.values() for v in s.values()]
        return sum(t.numel() * t.element_size() for t in [*own, *state])
