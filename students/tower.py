"""Train a small vision tower on dense labels, and start a projector where the tower's features mean words.

Real towers arrive trained (CLIP); the embedded suite's learns in half a minute what every patch of a scene shows. Both
steps exist because models this small stay on the plateau of the prior without them (shared/EMBEDDED.md section B).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.base import Strict

if TYPE_CHECKING:
    import torch

    from students.models.llava import LlavaAdapter


class TowerOptions(Strict):
    """How a tower learns dense labels; ``lr`` is AdamW's peak rate, ``absent`` the weight of the label 0 (nothing there)."""

    steps: int
    batch: int = 128
    lr: float = 2e-3
    warmup: int = 50
    absent: float = 0.2


def features(tower: Any, pixels: torch.Tensor, chunk: int = 500) -> torch.Tensor:
    """Return the patch features that LLaVA projects, float32 [images, patches, channels], without gradient."""
    import torch

    parts = []
    with torch.no_grad():
        for part in torch.split(pixels, chunk):
            parts.append(tower(pixel_values=part, output_hidden_states=True).hidden_states[-1][:, 1:])
    return torch.cat(parts)


def train_tower(
    tower: Any,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    options: TowerOptions,
    seed: int,
    report: Callable[[int, float], None],
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """Train a CLIP tower in place to say what each patch shows.

    Args:
        tower: a ``CLIPVisionModel``.
        pixels: float32 [images, 3, H, W].
        labels: int64 [images, patches, tasks]; 0 means that a patch shows nothing of the kind.
        options: steps and rates.
        seed: of the batches and the heads.
        report: called with the finished steps and the last loss, every 50 steps.

    Returns:
        The probe: pixels [n, 3, H, W] to one int64 [n, patches] prediction per task.
    """
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    sizes = [int(n) + 1 for n in labels.amax((0, 1))]
    torch.manual_seed(seed)
    heads = torch.nn.Linear(tower.config.hidden_size, sum(sizes))
    tower.requires_grad_(True)
    tower.train()
    learned = [*tower.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(learned, lr=options.lr, weight_decay=0.01)

    def predict(part: torch.Tensor) -> tuple[torch.Tensor, ...]:
        state = tower(pixel_values=part, output_hidden_states=True).hidden_states[-1][:, 1:]
        scores: torch.Tensor = heads(functional.layer_norm(state, state.shape[-1:]))
        return torch.split(scores, sizes, -1)

    for step in range(options.steps):
        rate = min(1.0, (step + 1) / options.warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / options.steps)))
        optimiser.param_groups[0]["lr"] = options.lr * rate
        chosen = torch.randint(0, len(pixels), (options.batch,), generator=generator)
        loss = torch.zeros(())
        for number, scores in enumerate(predict(pixels[chosen])):
            target = labels[chosen, :, number].flatten()
            each = functional.cross_entropy(scores.flatten(0, 1), target, reduction="none")
            loss = loss + torch.where(target > 0, each, options.absent * each).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            report(step + 1, float(loss.detach()))
    tower.requires_grad_(False)
    tower.eval()

    def probe(part: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return [scores.argmax(-1) for scores in predict(part)]

    return probe


def scale_projector(adapter: LlavaAdapter, pixels: torch.Tensor) -> None:
    """Divide the projector's first layer by the spread of the tower's features, so that it starts at unit scale."""
    import torch

    with torch.no_grad():
        adapter.projector.linear_1.weight /= features(adapter.tower, pixels).std()


Words = Sequence[Sequence[Sequence[int]]]


def align(adapter: LlavaAdapter, pixels: torch.Tensor, words: Words, steps: int, seed: int) -> float:
    """Fit projector and word embeddings so that a patch's projection is near the words of what it shows.

    Args:
        adapter: its projector and its tied embeddings learn.
        pixels: float32 [images, 3, H, W].
        words: per image and patch, token ids; none where nothing is to be said.
        steps: of AdamW at 3e-3, 128 images each.
        seed: of the batches.

    Returns:
        The last loss: mean negative log-likelihood of a patch's words, nats per word.
    """
    import torch

    said = features(adapter.tower, pixels)
    target = torch.zeros(*said.shape[:2], adapter.vocabulary_size)
    for image, patches in enumerate(words):
        for patch, ids in enumerate(patches):
            target[image, patch, list(ids)] = 1.0 / max(1, len(ids))
    embedding = adapter.model.model.language_model.embed_tokens.weight
    optimiser = torch.optim.AdamW([*adapter.projector.parameters(), embedding], lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    for _ in range(steps):
        chosen = torch.randint(0, len(said), (128,), generator=generator)
        shown = adapter.projector(said[chosen])
        shown = shown / shown.square().mean(-1, keepdim=True).add(1e-6).sqrt()
        scores = (shown @ embedding.T).log_softmax(-1)
        loss = -(target[chosen] * scores).sum() / target[chosen].sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(loss.detach())
