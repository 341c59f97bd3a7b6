"""The same losses as common distillation scripts write them, to be measured against: nothing here is used by the harness.

Every position of the sequence goes through the head and through the loss, probabilities come from a softmax whose logarithm is
taken afterwards, every intermediate stays in autograd's graph, and what does not count is multiplied by a mask of zeros at the
end. Written from METHOD.md's formulas; values and gradients agree with ``students/energies`` where nothing underflows, and
tests/test_benchmarks.py checks that they do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

#: Added to probabilities before their logarithm.
EPS = 1e-12

#: (teacher logits [R, L, V], student logits [R, L, V], labels [R, L]) -> [R, L]
Plain = Callable[[Tensor, Tensor, Tensor], Tensor]


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Sum p log(p / q) over the last axis of two probability tensors."""
    return (p * ((p + EPS).log() - (q + EPS).log())).sum(-1)


def probabilities(function: Callable[[Tensor, Tensor], Tensor]) -> Plain:
    """Make a loss of a function of two probability tensors."""
    return lambda teacher, student, _: function(teacher.softmax(-1), student.softmax(-1))


def scores(z: Tensor) -> Tensor:
    """Standardise logits over the vocabulary."""
    return (z - z.mean(-1, keepdim=True)) / (z.std(-1, keepdim=True) + 1e-8)


def ce(teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG001 - one signature for all
    """Cross-entropy on the labels."""
    return -(student.softmax(-1) + EPS).log().gather(-1, labels[..., None])[..., 0]


def js(p: Tensor, q: Tensor, b: float = 0.1) -> Tensor:
    """Generalised Jensen-Shannon."""
    m = b * p + (1 - b) * q
    return b * kl(p, m) + (1 - b) * kl(q, m)


def adaptive_kl(p: Tensor, q: Tensor, mu: float = 0.5) -> Tensor:
    """Head and tail of the teacher's sorted tokens weigh forward and reverse KL."""
    ranked, order = p.sort(-1, descending=True)
    gap = (ranked - q.gather(-1, order)).abs()
    head = ranked.cumsum(-1) <= mu
    head[..., 0] = True
    share = ((gap * head).sum(-1) / gap.sum(-1)).detach()
    return share * kl(p, q) + (1 - share) * kl(q, p)


def dkd(teacher: Tensor, student: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 0.5) -> Tensor:
    """Target and non-target parts, the target masked by -1000."""
    target = one_hot(labels, student.shape[-1])

    def pair(z: Tensor) -> Tensor:
        p = z.softmax(-1)
        return torch.stack([(p * target).sum(-1), (p * (1 - target)).sum(-1)], -1)

    others = kl((teacher - 1000.0 * target).softmax(-1), (student - 1000.0 * target).softmax(-1))
    return alpha * kl(pair(teacher), pair(student)) + beta * others


def taid(teacher: Tensor, student: Tensor, labels: Tensor, t: float = 0.4) -> Tensor:  # noqa: ARG001 - one signature
    """KL to the distribution between the student's and the teacher's."""
    return kl(((1 - t) * student.detach() + t * teacher).softmax(-1), student.softmax(-1))


class CTKD:
    """KL at a learned temperature, T^2 = (1 + 20 sigmoid(theta))^2; the reversal has strength 0 at the first step."""

    def __init__(self) -> None:
        self.theta = torch.tensor(1.0, requires_grad=True)

    def __call__(self, teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 - one signature
        """Return [R, L]."""
        heat = 1.0 + 20.0 * self.theta.sigmoid()
        return kl((teacher / heat).softmax(-1), (student / heat).softmax(-1)) * heat**2


#: Losses over logits, by the name of the energy.
LOGITS: dict[str, Callable[[], Plain]] = {
    "ce": lambda: ce,
    "fkl": lambda: probabilities(kl),
    "soft_ce": lambda: probabilities(lambda p, q: -(p * (q + EPS).log()).sum(-1)),
    "rkl": lambda: probabilities(lambda p, q: kl(q, p)),
    "js": lambda: probabilities(js),
    "tvd": lambda: probabilities(lambda p, q: (p - q).abs().sum(-1) / 2),
    "mse_probs": lambda: probabilities(lambda p, q: ((p - q) ** 2).mean(-1)),
    "cosine_probs": lambda: probabilities(lambda p, q: 1 - cosine_similarity(p, q, dim=-1)),
    "mse_logits": lambda: lambda teacher, student, _: ((scores(teacher) - scores(student)) ** 2).mean(-1),
    "cosine_logits": lambda: lambda teacher, student, _: 1 - cosine_similarity(scores(teacher), scores(student), dim=-1),
    "adaptive_kl": lambda: probabilities(adaptive_kl),
    "skew_fkl": lambda: probabilities(lambda p, q: kl(p, 0.1 * p + 0.9 * q)),
    "skew_rkl": lambda: probabilities(lambda p, q: kl(q, 0.9 * p + 0.1 * q)),
    "ctkd": CTKD,
    "dkd": lambda: dkd,
    "taid": lambda: taid,
}


def feature_distance(student: Tensor, teacher: Tensor, project: Tensor, has_image: Tensor) -> Tensor:
    """FD: vision tokens [R, n_v, D] against the teacher's, samples without an image multiplied by zero: [R]."""
    return ((teacher @ project.T - student) ** 2).mean((1, 2)) * has_image


def align(
    vision: tuple[Tensor, Tensor], maps: tuple[Tensor, Tensor], project: Tensor, heads: Tensor, is_text: Tensor, k: int
) -> Tensor:
    """Align-KD without its text term: whole attention maps [R, heads, L, L] under a mask, vision tokens [R, n_v, D]: [R]."""
    student, teacher = vision
    tokens = student.shape[1]
    mapped = torch.einsum("rhqk,gh->rgqk", maps[1], heads)
    keys = torch.arange(maps[0].shape[-1]) < tokens
    mask = is_text[:, None, :, None] * keys
    attention = ((mapped - maps[0]) ** 2 * mask).sum((1, 2, 3)) / (mask.sum((1, 2, 3)) * maps[0].shape[1])
    gap = ((teacher @ project.T - student) ** 2).mean(-1)
    looked = (maps[1].mean(1) * is_text[:, :, None]).sum(1)[:, :tokens].topk(k, -1).indices
    return attention + gap.gather(1, looked).mean(1) + gap.mean(1)


def relation(teacher: Tensor, student: Tensor, is_vision: Tensor) -> Tensor:
    """LLaVA-KD's RDist over all positions [R, L, V], those of text multiplied by zero: [R]."""
    mine, other = student * is_vision[..., None], teacher * is_vision[..., None]
    return 1 - cosine_similarity((mine @ mine.mT).flatten(1), (other @ other.mT).flatten(1), dim=-1)
