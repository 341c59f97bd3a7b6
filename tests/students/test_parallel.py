"""How a step is shared among ranks, without starting any: who has which rows, how records join, what energies sum."""

import itertools
import os
from types import SimpleNamespace

import pytest
import torch
from energy_toys import BUILDS, random_labels, random_pair, tokens

from harness.base import UserError
from students import distributed, energies, gathering
from students.distributed import Ranks
from students.parallel import Pass, shares


@pytest.mark.parametrize(("rows", "world"), [(7, 2), (8, 3), (5, 5), (24, 8), (1, 1)])
def test_shares_are_contiguous_and_nearly_equal(rows, world):
    members = [[k] for k in range(rows)]
    found = shares(members, world)
    assert list(itertools.chain(*found)) == members
    sizes = [len(share) for share in found]
    assert max(sizes) - min(sizes) <= 1
    assert len(found) == world


def test_what_runs_in_an_engine_chooses_its_own_precision():
    """accelerate wraps a model's whole pass in autocast; losses and a teacher inside it are not to be in bfloat16."""
    model = torch.nn.Linear(2, 2)
    adapter = SimpleNamespace(model=model, language=SimpleNamespace(layers=[model]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Pass(adapter)(model, torch.ones(2)).dtype is torch.float32


def test_samples_are_in_the_order_of_the_rows():
    """Rank 0 has samples 0-2 of the first micro-batch and 5 of the second; rank 1 has 3-4 and 6-8."""
    assert gathering._ordered([(0, 1, 2, 5), (3, 4, 6, 7, 8)], [(3, 1), (2, 3)]) == tuple(range(9))


@pytest.mark.parametrize(("name", "options"), BUILDS, ids=[name for name, _ in BUILDS])
def test_a_call_changes_no_buffer_but_declared_sums(name, options):
    """What a call changes is of one rank's tokens, so it must be summed over ranks; `sums` says what is."""
    energy = energies.build(name, **options).train()
    before = {key: value.clone() for key, value in energy.named_buffers()}
    energy(tokens(*random_pair(), random_labels()))
    changed = {key for key, value in energy.named_buffers() if not torch.equal(value, before[key])}
    assert changed <= set(energy.sums)
    assert set(energy.sums) <= set(before)


@pytest.mark.parametrize("cut", [1, 7, 16])
def test_taid_over_shares_is_taid_over_all(cut):
    """Two copies that see a part of the tokens each, and sum what they declare, go on as one that sees all."""
    student, teacher = random_pair()
    whole = energies.build("taid", alpha=0.5).train()
    halves = [energies.build("taid", alpha=0.5).train() for _ in range(2)]
    for step in (1, 2, 3):
        whole(tokens(student / step, teacher))
        for half, part in zip(halves, (slice(0, cut), slice(cut, None)), strict=True):
            half(tokens(student[part] / step, teacher[part]))
        for name in whole.sums:
            total = sum(getattr(half, name) for half in halves)
            for half in halves:
                getattr(half, name).copy_(total)
        for energy in (whole, *halves):
            energy.on_optimiser_step(step, 10)
    for half in halves:
        torch.testing.assert_close(half.t, whole.t)
        torch.testing.assert_close(half.momentum, whole.momentum)


def test_one_process_needs_no_launcher_and_no_group(monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    alone = distributed.ranks()
    assert alone == Ranks(0, 1)
    assert alone.gather("x") == ["x"]
    assert alone.tell("x") == "x"
    assert alone.any([True, False]) == [True, False]
    with pytest.raises(UserError, match="as it is"), alone.together():
        raise UserError("as it is")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two' in the environment; allowed: a whole number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, and WORLD_SIZE 2; allowed: 0 to 1"),
        ({"WORLD_SIZE": "2"}, "RANK is -1"),
    ],
)
def test_a_launchers_variables_that_do_not_fit_are_named(monkeypatch, given, words):
    monkeypatch.delenv("RANK", raising=False)
    for name, value in given.items():
        monkeypatch.setitem(os.environ, name, value)
    with pytest.raises(UserError, match=words):
        distributed.ranks()


def test_errors_survive_the_way_to_another_process_in_their_words():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    sent = distributed._unpacked(distributed._packed(UserError("x is 3; allowed: 1, 2")))
    assert type(sent) is UserError
    assert str(sent) == "x is 3; allowed: 1, 2"
    assert str(distributed._unpacked(distributed._packed(Odd(1, 2)))) == "Odd: 1 and 2"
