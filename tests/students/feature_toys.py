"""Made-up taps of two models for the feature energies, and what the tests check them against in numpy."""

import numpy as np
import torch

from students.batch import Tap, TokenBatch
from students.energies.align_kd import Energy as AlignKD
from students.energies.fd import Energy as FD
from students.energies.llava_kd import Energy as LlavaKD

B, N_V, V, Q = 5, 6, 11, 4
WIDTHS = {"vision": (3, 5), "attention": (2, 4), "vision_logits": (V, V)}
EQUAL = {"vision": (3, 3), "attention": (2, 2), "vision_logits": (V, V)}
GROUP = (0, 1, 1, -1, 2)  # two questions about one image, and one about none
TOKENS, QUERIES = (2, 1, 3, 2, 1), (4, 2, 3, 1, 4)
BUILD = {
    "fd": lambda widths: FD(widths),
    "align_kd": lambda widths: AlignKD(widths, k=2),
    "llava_kd": lambda widths: LlavaKD(),
}


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(seed=0, group=GROUP, widths=WIDTHS, dtype=torch.float64, scale=1.0):
    """A batch of five samples about three images; what the student shows carries gradient."""
    owner = torch.tensor(group)
    images = max(group) + 1
    sample = torch.repeat_interleave(torch.arange(B), torch.tensor(TOKENS))
    taps = {}
    for number, name in enumerate(("vision", "vision_logits", "attention")):
        shape = (B, Q, N_V) if name == "attention" else (images, N_V)
        student, teacher = (scale * randn(seed + 10 * number + k, *shape, w) for k, w in enumerate(widths[name]))
        if name == "attention":
            keep = torch.arange(Q)[None] < torch.tensor(QUERIES)[:, None]
            student, teacher = student.softmax(2), teacher.softmax(2)
            tap_owner = torch.where(owner >= 0, torch.arange(B), -1)
        else:
            keep, tap_owner = None, owner
        taps[name] = Tap(student.to(dtype).requires_grad_(), teacher.to(dtype), tap_owner, keep)
    logits = [scale * randn(seed + 50 + k, len(sample), V) for k in range(2)]
    return TokenBatch(logits[0].to(dtype).requires_grad_(), logits[1].to(dtype), torch.arange(len(sample)) % V, sample, taps)


def matched(batch):
    """The same batch with a student that shows what the teacher shows."""
    taps = {name: Tap(t.teacher.clone().requires_grad_(), t.teacher, t.group, t.mask) for name, t in (batch.taps or {}).items()}
    return TokenBatch(batch.teacher_logits.clone().requires_grad_(), batch.teacher_logits, batch.labels, batch.sample, taps)


def build(name, widths=WIDTHS):
    torch.manual_seed(0)
    return BUILD[name](widths).double()


def np_kl(teacher, student):
    def log_softmax(z):
        return z - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)) - z.max(-1, keepdims=True)

    t, s = log_softmax(teacher), log_softmax(student)
    return (np.exp(t) * (t - s)).sum(-1)


def arrays(batch, name):
    found = batch.taps[name]
    return found.student.detach().numpy(), found.teacher.numpy()


def np_text(batch):
    per_token = np_kl(batch.teacher_logits.numpy(), batch.student_logits.detach().numpy())
    return np.array([per_token[batch.sample.numpy() == k].mean() for k in range(B)])
