"""students/head.py: logits in chunks give the losses, gradients, states and records of logits at once."""

import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from students import energies, head, stored, voice
from students.features import scalars
from students.head import Head
from students.losses import Losses
from students.options import DistilOptions
from students.recipe import Variant, parse
from students.stored import Stored, held

V, H, N, B = 23, 6, 17, 4
SAMPLE = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2])  # sample 3 has no token
BY_TOKENS = [name for name in energies.names() if name not in ("fd", "align_kd", "llava_kd")]
OPTIONS = DistilOptions(steps=4, rows=3, turns=3, warmup=1, betas_every=2, flush_every=3)


class Case:
    """Random states, labels and a teacher; the student is a linear head."""

    def __init__(self, recipe, limit, dtype=torch.float64, tokens=N):
        draw = torch.Generator().manual_seed(0)
        self.states = torch.randn(tokens, H, generator=draw, dtype=dtype).requires_grad_()
        self.lm = torch.nn.Linear(H, V, dtype=dtype)
        with torch.no_grad():
            self.lm.weight.copy_(torch.randn(V, H, generator=draw))
            self.lm.bias.copy_(torch.randn(V, generator=draw))
        self.teacher = 2 * torch.randn(tokens, V, generator=draw, dtype=dtype)
        sample = SAMPLE if tokens == N else torch.arange(tokens) % B
        self.batch = SimpleNamespace(labels=torch.randint(V, (tokens,), generator=draw), sample=sample, indices=range(B))
        self.losses = Losses(parse(recipe), Variant(), {}, V).to(dtype)
        adapter = SimpleNamespace(vocabulary_size=V, head=self.lm)
        self.head = Head(adapter, self.losses, contextlib.nullcontext, ("scalars",), limit)

    def read(self, states=None, show=False):
        said = SimpleNamespace(logits=self.teacher, taps=None)
        return self.head(self.states if states is None else states, self.batch, said, show)

    def total(self, states=None):
        """A different weight for every sample and channel, as an instance weighting gives."""
        values = self.read(states).losses.by_channel
        return sum(((1 + k + torch.arange(B)) * v).sum() for k, v in enumerate(values.values()))

    def gradients(self):
        return [self.states.grad, *(p.grad for p in self.lm.parameters()), *(p.grad for p in self.losses.parameters())]


def both(recipe, **given):
    return Case(recipe, 10**9, **given), Case(recipe, 3 * V, **given)


@pytest.mark.parametrize("name", BY_TOKENS)
def test_chunks_give_the_losses_and_gradients_of_all_tokens_at_once(name):
    whole, chunked = both(f"ce+{name}")
    for case in (whole, chunked):
        case.losses.on_optimiser_step(3, 10)  # ctkd's gradient of theta is 0 before
        case.losses.train()
        case.total().backward()
    torch.testing.assert_close(chunked.total(), whole.total(), rtol=1e-12, atol=0)
    for mine, other in zip(chunked.gradients(), whole.gradients(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)
    assert whole.read().logits.shape == (N, V)
    assert chunked.read().logits.shape == (0, V)


def test_gradients_through_chunks_are_those_of_finite_differences():
    case = Case("ce+fkl+js", 4 * V)

    def losses(states):
        return torch.stack(list(case.read(states).losses.by_channel.values()))

    assert torch.autograd.gradcheck(losses, case.states, fast_mode=True)


@pytest.mark.parametrize("limit", [1, V - 1, 5 * V, N * V - 1])
def test_any_limit_gives_the_same(limit):
    expected = Case("ce+rkl", 10**9).total()
    torch.testing.assert_close(Case("ce+rkl", limit).total(), expected, rtol=1e-12, atol=0)


def test_states_and_logs_of_energies_count_every_token_once():
    whole, chunked = both("ce+taid+fkl")
    for case in (whole, chunked):
        case.teacher[2, 3] = -torch.inf
        with torch.no_grad():
            case.lm.bias[5] = -torch.inf  # the student bans a token, which fkl has to floor
        case.total().backward()
        assert case.losses.training
    assert int(chunked.losses.logs["fkl.floored"]) == int(whole.losses.logs["fkl.floored"]) == N
    assert int(chunked.losses.energy("taid").loss_count) == N
    torch.testing.assert_close(chunked.losses.energy("taid").loss_sum, whole.losses.energy("taid").loss_sum)


def test_an_evaluation_counts_nothing():
    case = Case("ce+taid", 3 * V)
    case.losses.eval()
    with torch.no_grad():
        case.total()
    assert case.losses.logs == {}
    assert float(case.losses.energy("taid").loss_count) == 0


def test_gradients_of_one_channel_after_the_other():
    """As gradnorm takes them: the graph of chunks can be walked more than once."""
    whole, chunked = both("ce+fkl")
    for channel in ("ce", "fkl"):
        found = []
        for case in (whole, chunked):
            values = case.read().losses.by_channel
            first = torch.autograd.grad(values["ce"].sum(), case.states, retain_graph=True)
            found.append((first, torch.autograd.grad(values[channel].sum(), case.states)))
        torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_what_a_gate_reads_of_logits_is_the_same():
    whole, chunked = both("ce+fkl")
    logits, found = whole.read().logits, chunked.read().scalars
    torch.testing.assert_close(found["student"], scalars(logits, whole.batch.sample, B))
    torch.testing.assert_close(found["teacher"], scalars(whole.teacher, whole.batch.sample, B))
    assert not found["student"].requires_grad
    assert whole.read().scalars == {}


def test_a_histogram_sees_every_nth_logit_of_all_tokens(monkeypatch):
    monkeypatch.setattr(head, "SHOWN", 40)
    whole, chunked = both("ce+fkl")
    stride = -(-N * V // 40)
    found = chunked.read(show=True).shown
    torch.testing.assert_close(found["student"], whole.read().logits.detach().reshape(-1)[::stride])
    assert torch.equal(found["teacher"], whole.teacher.reshape(-1)[::stride])
    assert chunked.read().shown == {}


def test_a_teacher_may_be_asked_for_a_part_at_a_time():
    """Once in the forward and once in the backward pass, in no larger parts than chunks are."""
    whole, chunked = both("ce+fkl@fixed")
    asked, logits = [], chunked.teacher

    def read(where):
        asked.append(where)
        return logits[where]

    chunked.teacher = Stored(N, V, read)
    for case in (whole, chunked):
        case.total().backward()
    torch.testing.assert_close(chunked.states.grad, whole.states.grad, rtol=1e-9, atol=1e-12)
    assert [w.start for w in asked] == [0, 3, 6, 9, 12, 15, 15, 12, 9, 6, 3, 0]
    found = whole.head(whole.states, whole.batch, SimpleNamespace(logits=Stored(N, V, lambda w: logits[w]), taps=None), False)
    torch.testing.assert_close(found.losses.by_channel["fkl"], whole.read().losses.by_channel["fkl"], rtol=0, atol=0)


@pytest.mark.parametrize("limit", [V, 4 * V, N * V])
def test_entropy_and_greedy_reply_of_parts_are_those_of_all(monkeypatch, limit):
    monkeypatch.setattr(stored, "LIMIT", limit)
    logits, labels = torch.randn(N, V), torch.randint(V, (N,))
    labels[SAMPLE == 1] = logits[SAMPLE == 1].argmax(-1)
    split = held(N, V, lambda where: logits[where])
    assert isinstance(split, torch.Tensor) == (limit == N * V)
    assert torch.equal(voice.entropy_of(split, SAMPLE, B), voice.entropy_of(logits, SAMPLE, B))
    assert voice.greedy(split, labels, SAMPLE, B)[1]
    assert torch.equal(voice.greedy(split, labels, SAMPLE, B), voice.greedy(logits, labels, SAMPLE, B))
    assert torch.equal(split.to("cpu")[2:5], logits[2:5])


class Largest(TorchDispatchMode):
    """The most elements that a tensor made inside had."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.numel())
        return found


def test_nothing_made_on_the_way_grows_with_tokens_times_vocabulary():
    for tokens in (20, 400):
        case = Case("ce+fkl@fixed", 8 * V, tokens=tokens)
        with Largest() as largest:
            case.total().backward()
        assert largest.most <= max(8 * V, tokens * H)
    saved = []
    case = Case("ce+fkl", 8 * V, tokens=400)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        case.total()
    assert max(saved) < 400 * V / 2


def dynamics(folder):
    return [json.loads(line) for line in (folder / "dynamics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rows", [None, 1], ids=["at once", "micro-batches"])
@pytest.mark.parametrize("recipe", ["ce", "ce+fkl@instance", "ce+taid@famo", "ctkd+fd@gradnorm", "ce+fkl+align_kd@task"])
def test_a_training_in_chunks_is_the_same(train, monkeypatch, recipe, rows):
    options = OPTIONS.model_copy(update={"micro_rows": rows})
    energy = {"align_kd": {"k": 2}} if "align_kd" in recipe else {}
    gate = {"features": ["scalars"]} if "instance" in recipe else {}
    given = {"options": options, "variant": Variant(energies=energy, weighting=gate)}
    whole = train(recipe, "whole", **given)
    monkeypatch.setattr(stored, "LIMIT", 400)
    chunked = train(recipe, "chunked", **given)
    for mine, other in zip(dynamics(chunked), dynamics(whole), strict=True):
        for name in ("loss", "weight"):
            assert mine[name] == pytest.approx(other[name], rel=1e-5, abs=1e-7), name
        for name in ("total", "grad_norm", "teacher_entropy"):
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), name
    betas = [pd.read_parquet(folder / "betas.parquet") for folder in (chunked, whole)]
    pd.testing.assert_frame_equal(*betas, rtol=1e-4, atol=1e-6)
    counts = [np.load(folder / "snapshots.npz") for folder in (chunked, whole)]
    assert set(counts[0]) == set(counts[1])
    for name in counts[0]:
        if name != "edges" and not name.endswith("step"):
            assert counts[0][name].sum() == counts[1][name].sum() > 0
