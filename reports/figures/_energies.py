"""Token energies by their textbook formulas, in NumPy and float64: for drawing. Training uses students.energies.

Every function takes the teacher's p and the student's q, [..., V] probabilities that broadcast, none of them 0, and returns
[...], never below 0 but for rounding. Source: the formulas of METHOD.md 2.1 and 2.2, with the defaults of students.energies;
tests compare them with METHOD's golden values and with students.energies.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(z: Floats) -> Floats:
    """[..., V] logits to probabilities."""
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def kl(a: Floats, b: Floats) -> Floats:
    """KL(a || b) in nats."""
    return np.asarray((a * np.log(a / b)).sum(axis=-1))


def fkl(p: Floats, q: Floats) -> Floats:
    """Forward KL: KL(p || q)."""
    return kl(p, q)


def rkl(p: Floats, q: Floats) -> Floats:
    """Reverse KL: KL(q || p)."""
    return kl(q, p)


def js(p: Floats, q: Floats, b: float = 0.1) -> Floats:
    """Jensen-Shannon: b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q."""
    m = b * p + (1.0 - b) * q
    return b * kl(p, m) + (1.0 - b) * kl(q, m)


def tvd(p: Floats, q: Floats) -> Floats:
    """Total variation distance."""
    return np.asarray(0.5 * np.abs(p - q).sum(axis=-1))


def mse_probs(p: Floats, q: Floats) -> Floats:
    """Mean over V of (p - q)^2."""
    return np.asarray(((p - q) ** 2).mean(axis=-1))


def cosine_probs(p: Floats, q: Floats) -> Floats:
    """1 - cos(p, q)."""
    return _one_minus_cosine(p, q)


def cosine_logits(p: Floats, q: Floats) -> Floats:
    """1 - cos of the logits, centred over V; a student of equal logits has no direction, and a cosine of 0."""
    return _one_minus_cosine(_centred(p), _centred(q))


def mse_logits(p: Floats, q: Floats) -> Floats:
    """Mean over V of the squared difference of the logits' z-scores (unbiased standard deviation)."""
    scores = []
    for probabilities in (p, q):
        centred = _centred(probabilities)
        std = np.sqrt((centred**2).sum(axis=-1, keepdims=True) / (centred.shape[-1] - 1))
        scores.append(centred / (std + 1e-8))
    return np.asarray(((scores[0] - scores[1]) ** 2).mean(axis=-1))


def adaptive_kl(p: Floats, q: Floats, mu: float = 0.5) -> Floats:
    """h FKL + (1 - h) RKL, h the head's share of |p - q|: the teacher's top tokens up to a mass of ``mu``, at least one."""
    order = np.argsort(-p, axis=-1, kind="stable")
    head = np.cumsum(np.take_along_axis(p, order, axis=-1), axis=-1) <= mu
    head[..., 0] = True
    gap = np.abs(p - q)
    inside = (np.take_along_axis(gap, np.broadcast_to(order, gap.shape), axis=-1) * head).sum(axis=-1)
    total = gap.sum(axis=-1)
    h = np.divide(inside, total, out=np.full(total.shape, 0.5), where=total > 0)
    return np.asarray(h * fkl(p, q) + (1.0 - h) * rkl(p, q))


def skew_fkl(p: Floats, q: Floats, alpha: float = 0.1) -> Floats:
    """KL(p || alpha p + (1 - alpha) q)."""
    return kl(p, alpha * p + (1.0 - alpha) * q)


def skew_rkl(p: Floats, q: Floats, alpha: float = 0.1) -> Floats:
    """KL(q || (1 - alpha) p + alpha q)."""
    return kl(q, (1.0 - alpha) * p + alpha * q)


def dkd_parts(p: Floats, q: Floats, label: int = 0) -> tuple[Floats, Floats]:
    """TCKD, the KL of (p_y, 1 - p_y) from (q_y, 1 - q_y), and NCKD, the KL over the other tokens, renormalised."""
    own = [np.stack([x[..., label], 1.0 - x[..., label]], axis=-1) for x in (p, q)]
    rest = [np.delete(x, label, axis=-1) for x in (p, q)]
    rest = [x / x.sum(axis=-1, keepdims=True) for x in rest]
    return kl(own[0], own[1]), kl(rest[0], rest[1])


def dkd(p: Floats, q: Floats, label: int = 0, alpha: float = 1.0, beta: float = 0.5) -> Floats:
    """alpha TCKD + beta NCKD; the label is the first token."""
    target, others = dkd_parts(p, q, label)
    return alpha * target + beta * others


def taid(p: Floats, q: Floats, t: float = 0.4) -> Floats:
    """KL(p_t || q), p_t = softmax((1 - t) z_q + t z_p), at the t with which a training starts."""
    return kl(softmax((1.0 - t) * np.log(q) + t * np.log(p)), q)


def tempered_kl(p: Floats, q: Floats, temperature: float) -> Floats:
    """T^2 KL(p || q) at temperature T."""
    return temperature**2 * kl(softmax(np.log(p) / temperature), softmax(np.log(q) / temperature))


def ctkd(p: Floats, q: Floats, t0: float = 1.0, t1: float = 20.0, theta: float = 1.0) -> Floats:
    """T^2 KL(p || q) at T = t0 + t1 sigmoid(theta), the temperature with which a training starts."""
    return tempered_kl(p, q, t0 + t1 / (1.0 + math.exp(-theta)))


def _centred(probabilities: Floats) -> Floats:
    z = np.log(probabilities)
    return np.asarray(z - z.mean(axis=-1, keepdims=True))


def _one_minus_cosine(a: Floats, b: Floats) -> Floats:
    """Half the squared distance of unit vectors: the same number, without cancellation near a match."""
    units = [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (a, b)]
    return np.asarray(((units[0] - units[1]) ** 2).sum(axis=-1) / 2.0)


#: By the word in a recipe: the formula and its unit.
ENERGIES: dict[str, tuple[Callable[[Floats, Floats], Floats], str]] = {
    "fkl": (fkl, "nats"),
    "rkl": (rkl, "nats"),
    "js": (js, "nats"),
    "tvd": (tvd, ""),
    "cosine_probs": (cosine_probs, ""),
    "mse_probs": (mse_probs, ""),
    "cosine_logits": (cosine_logits, ""),
    "mse_logits": (mse_logits, ""),
    "skew_fkl": (skew_fkl, "nats"),
    "skew_rkl": (skew_rkl, "nats"),
    "adaptive_kl": (adaptive_kl, "nats"),
    "dkd": (dkd, "nats"),
    "taid": (taid, "nats"),
    "ctkd": (ctkd, "nats"),
}
