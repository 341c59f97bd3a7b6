"""students/batch.py, blocks: an energy that takes a cacheful of tokens at a time says what it says of all at once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from students import batch, energies
from students.batch import TokenBatch
from students.bins import Bins
from students.losses import Losses
from students.recipe import Variant, parse

V, N, B = 29, 21, 5
SAMPLE = torch.arange(N) % B
LABELS = torch.arange(N) % V
BY_TOKENS = [name for name in energies.names() if name not in ("fd", "align_kd", "llava_kd")]


def logits(seed, width=V):
    return 3 * torch.randn(N, width, generator=torch.Generator().manual_seed(seed))


def asked(name, teacher, width=V):
    """Losses of one channel, gradients of the student's logits and of the energy, and what the energy keeps."""
    losses = Losses(parse(name), Variant(), {}, V)
    losses.on_optimiser_step(3, 10)  # ctkd's gradient of theta is 0 before
    losses.train()
    student = logits(1, width)
    student[4, 2] = -torch.inf  # fkl has to floor what the student bans
    student.requires_grad_()
    values = losses(student, LABELS, SAMPLE, B, teacher).by_channel[name]
    (values * (1 + torch.arange(B))).sum().backward()
    return values.detach(), [student.grad, *(p.grad for p in losses.parameters())], losses.state_dict(), losses.logs


@pytest.mark.parametrize("rows", [1, 4, 20])
@pytest.mark.parametrize("name", BY_TOKENS)
def test_values_gradients_states_and_logs_are_those_of_all_tokens_at_once(monkeypatch, name, rows):
    whole = asked(name, logits(2, V + 3), V + 3)  # both heads wider than the tokenizer
    monkeypatch.setattr(batch, "BLOCK", rows * V + 1)
    parts = asked(name, logits(2, V + 3), V + 3)
    assert torch.equal(parts[0], whole[0])
    for mine, other in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)  # ctkd's theta adds up in another order
    for kept in (2, 3):
        assert parts[kept].keys() == whole[kept].keys()
        for key, value in whole[kept].items():
            torch.testing.assert_close(parts[kept][key], value, rtol=1e-12, atol=0)


def test_bins_are_taken_in_blocks_too(monkeypatch):
    ids = logits(3).topk(7).indices
    teacher = Bins(ids, logits(4, 8))
    whole = asked("fkl", teacher)
    monkeypatch.setattr(batch, "BLOCK", 16)
    parts = asked("fkl", teacher)
    assert torch.equal(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-6, atol=1e-9)


def test_blocks_are_all_tokens_in_order_and_no_larger_than_allowed(monkeypatch):
    shared = TokenBatch(logits(1), logits(2), LABELS, SAMPLE, {})
    assert list(shared.blocks()) == [shared]
    monkeypatch.setattr(batch, "BLOCK", 4 * V)
    parts = list(shared.blocks())
    assert [len(part.labels) for part in parts] == [4, 4, 4, 4, 4, 1]
    for field in ("student_logits", "teacher_logits", "labels", "sample"):
        assert torch.equal(torch.cat([getattr(part, field) for part in parts]), getattr(shared, field))
    assert all(part.taps is shared.taps for part in parts)
    monkeypatch.setattr(batch, "BLOCK", 1)  # a row wider than a block is one
    assert len(list(shared.blocks())) == N


class Made(TorchDispatchMode):
    """Elements of each tensor that was made."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        views = {"split", "slice", "view", "detach", "alias"}
        if isinstance(found, torch.Tensor) and function.overloadpacket.__name__ not in views:
            self.sizes.append(found.numel())
        return found


@pytest.mark.parametrize("name", ["fkl", "js", "rkl", "taid"])
def test_on_the_way_to_the_values_nothing_larger_than_a_block_is_made(monkeypatch, name):
    monkeypatch.setattr(batch, "BLOCK", 4 * V)
    losses = Losses(parse(name), Variant(), {}, V)
    student, teacher = logits(1).requires_grad_(), logits(2)
    with Made() as made:
        losses(student, LABELS, SAMPLE, B, teacher)
    assert max(made.sizes) <= 4 * V < N * V
