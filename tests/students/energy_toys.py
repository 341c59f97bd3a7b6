"""Batches for tests of energies over logits, and the same energies once more in numpy and scipy, float64."""

import math

import numpy as np
import torch
from scipy.spatial.distance import cityblock, cosine, jensenshannon, sqeuclidean
from scipy.special import rel_entr, softmax
from scipy.stats import entropy, zscore

from students import energies
from students.batch import TokenBatch

#: METHOD 2.0's example.
P = torch.tensor([[0.7, 0.2, 0.1]])
Q = torch.tensor([[0.5, 0.3, 0.2]])

NAMES = tuple(name for name in energies.names() if energies.needs(name) <= {"labels"})  # over logits alone
PROPER = tuple(name for name in NAMES if name != "soft_ce")

#: Every energy over logits, with its defaults and with others.
BUILDS = [
    *((name, {}) for name in NAMES),
    *((name, {"temperature": 2.5}) for name in ("fkl", "rkl", "tvd", "cosine_probs", "soft_ce")),
    ("js", {"b": 0.5}),
    ("js", {"b": 0.9, "temperature": 0.7}),
    ("skew_fkl", {"alpha": 0.5, "temperature": 2.0}),
    ("skew_rkl", {"alpha": 0.5, "temperature": 2.0}),
    ("mse_probs", {"reduce": "sum", "temperature": 2.0}),
    ("mse_logits", {"standardise": False}),
    ("adaptive_kl", {"mu": 0.9, "temperature": 2.0}),
    ("dkd", {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}),
    ("dkd", {"alpha": 0.0, "beta": 1.0}),
    ("taid", {"t0": 0.0}),
    ("taid", {"t0": 1.0}),
    ("ctkd", {"t1": 4.0, "theta": -2.0}),
]


def tokens(student, teacher, labels=None, sample=None):
    none = torch.zeros(student.shape[0], dtype=torch.long)
    return TokenBatch(student, teacher, none if labels is None else labels, none if sample is None else sample)


def random_pair(n=16, v=11, scale=4.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(n, v, generator=generator, dtype=torch.float64) * scale for _ in range(2))
    return student.to(dtype), teacher.to(dtype)


def random_labels(n=16, v=11, seed=0):
    return torch.randint(0, v, (n,), generator=torch.Generator().manual_seed(seed))


def example(name, **options):
    """Return the value of METHOD's example."""
    return energies.build(name, **options)(tokens(Q.log(), P.log())).item()


def gradient(energy, student, teacher, labels=None):
    student = student.clone().requires_grad_()
    energy(tokens(student, teacher, labels)).sum().backward()
    return student.grad


def _kl(p, q):
    return rel_entr(p, q).sum()


def _js(p, q, b=0.1):
    if b == 0.5:
        return jensenshannon(p, q) ** 2
    return entropy(b * p + (1 - b) * q) - b * entropy(p) - (1 - b) * entropy(q)


def head_share(p, q, mu=0.5):
    """Return h of adaptive KL, by walking down the teacher's tokens."""
    mass, head = 0.0, []
    for k in np.argsort(-p, kind="stable"):
        mass += p[k]
        if head and mass > mu:
            break
        head.append(k)
        if mass > mu:
            break
    gap = np.abs(p - q)
    return gap[head].sum() / gap.sum()


def _akl(p, q, mu=0.5):
    h = head_share(p, q, mu)
    return h * _kl(p, q) + (1 - h) * _kl(q, p)


def decoupled(p, q, y):
    """Return TCKD and NCKD."""
    others = np.delete(p, y), np.delete(q, y)
    sums = [side.sum() for side in others]  # 1 - p[y] would lose its digits where p[y] is near 1
    target = _kl(np.array([p[y], sums[0]]), np.array([q[y], sums[1]]))
    return target, _kl(others[0] / sums[0], others[1] / sums[1])


_PROBABILITIES = {
    "fkl": _kl,
    "rkl": lambda p, q: _kl(q, p),
    "js": _js,
    "tvd": lambda p, q: cityblock(p, q) / 2,
    "mse_probs": lambda p, q, reduce="mean": sqeuclidean(p, q) / (len(p) if reduce == "mean" else 1),
    "cosine_probs": cosine,
    "adaptive_kl": _akl,
    "skew_fkl": lambda p, q, alpha=0.1: _kl(p, alpha * p + (1 - alpha) * q),
    "skew_rkl": lambda p, q, alpha=0.1: _kl(q, (1 - alpha) * p + alpha * q),
    "soft_ce": lambda p, q: entropy(p) + _kl(p, q),
}


def reference(name, zt, zs, y, **options):
    """Return one token's value from teacher logits, student logits [V] and label."""
    zt, zs = np.asarray(zt, np.float64), np.asarray(zs, np.float64)
    if name == "cosine_logits":
        return 1 - np.corrcoef(zt, zs)[0, 1]
    if name == "mse_logits":
        return np.mean((zscore(zt, ddof=1) - zscore(zs, ddof=1)) ** 2 if options.get("standardise", True) else (zt - zs) ** 2)
    if name == "taid":
        t = options.get("t0", 0.4)
        return _kl(softmax((1 - t) * zs + t * zt), softmax(zs))
    temperature = options.pop("temperature", 1.0)
    if name == "ctkd":
        temperature = 1 + options.get("t1", 20.0) / (1 + math.exp(-options.get("theta", 1.0)))
    p, q = softmax(zt / temperature), softmax(zs / temperature)
    if name == "ctkd":
        return temperature**2 * _kl(p, q)
    if name == "dkd":
        target, rest = decoupled(p, q, y)
        return temperature**2 * (options.get("alpha", 1.0) * target + options.get("beta", 0.5) * rest)
    return temperature**2 * _PROBABILITIES[name](p, q, **options)
