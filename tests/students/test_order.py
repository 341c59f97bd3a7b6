"""The order of rows: every row once per epoch, one modality a megabatch, any step without the ones before it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base import UserError
from students.data.order import Order, permuted


def arrays(size, share=0.4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(3, 300, size=size).astype(np.int32), (rng.random(size) >= share).astype(np.int16)


@given(st.integers(1, 700), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_permutation_takes_every_place_once(size, seed):
    found = permuted(np.arange(size), size, f"key {seed}")
    assert sorted(found.tolist()) == list(range(size))


def test_permutations_are_uniform():
    """Where the first of five elements goes, and which of the 24 orders of four, over keys: chi-square below its 1e-6 limit."""
    keys = 6000
    orders: dict[tuple[int, ...], int] = {}
    places = np.zeros((5, 5))
    for key in range(keys):
        for source, target in enumerate(permuted(np.arange(5), 5, f"a {key}")):
            places[source, target] += 1
        order = tuple(permuted(np.arange(4), 4, f"b {key}").tolist())
        orders[order] = orders.get(order, 0) + 1
    assert ((places - keys / 5) ** 2 / (keys / 5)).sum() < 56  # 16 degrees of freedom, 56 is 2e-6
    assert len(orders) == 24
    counts = np.array(list(orders.values()))
    assert ((counts - keys / 24) ** 2 / (keys / 24)).sum() < 73  # 23 degrees of freedom


def test_neighbours_do_not_stay_together():
    found = permuted(np.arange(50_000), 50_000, "x")
    assert abs(np.corrcoef(np.arange(50_000), found)[0, 1]) < 0.02
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(found)) < 5).mean() < 0.001


@pytest.mark.parametrize("grouping", ["none", "modality_length"])
@given(size=st.integers(8, 400), per_step=st.integers(1, 8), share=st.sampled_from([0.0, 0.3, 1.0]), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_every_row_at_most_once_per_epoch_and_few_left_out(grouping, size, per_step, share, seed):
    lengths, shows = arrays(size, share, seed)
    order = Order(lengths, shows, per_step, seed, grouping, epochs=2)
    assert order.steps == 2 * (size // per_step)
    for epoch in range(2):
        steps = range(epoch * order.per_epoch, (epoch + 1) * order.per_epoch)
        rows = [row for step in steps for row in order.members(step)]
        assert len(rows) == len(set(rows)) == per_step * order.per_epoch > size - per_step
        assert set(rows) <= set(range(size))


def test_any_step_is_the_same_whatever_came_before():
    lengths, shows = arrays(5000)
    first = Order(lengths, shows, 32, 7, "modality_length", epochs=1)
    again = Order(lengths, shows, 32, 7, "modality_length", steps=900)
    for step in (155, 3, 0, 40):
        assert first.members(step) == again.members(step) == first.members(step)
    assert Order(lengths, shows, 32, 8, "modality_length", epochs=1).members(3) != first.members(3)
    assert again.members(3) != again.members(3 + again.per_epoch), "another epoch is another permutation"


@pytest.mark.parametrize("megabatch", [None, 8])
def test_a_megabatch_shows_images_in_every_row_or_in_none_and_is_sorted(megabatch):
    lengths, shows = arrays(3000, share=0.3)
    order = Order(lengths, shows, 32, 1, "modality_length", epochs=1, megabatch=megabatch)
    size = megabatch or 32
    batches = [rows[k : k + size] for step in range(order.steps) for rows in [order.members(step)] for k in range(0, 32, size)]
    mixed = [rows for rows in batches if len({bool(shows[row]) for row in rows}) == 2]
    assert len(mixed) <= 1, "what is left of both"
    for rows in batches:
        if rows not in mixed:
            assert [lengths[row] for row in rows] == sorted((lengths[row] for row in rows), reverse=True)
    kinds = [bool(shows[rows[0]]) for rows in batches if rows not in mixed]
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    share = np.mean(kinds)
    assert changes == pytest.approx(2 * share * (1 - share) * len(kinds), rel=0.35), "megabatches of both kinds are mixed"


def test_what_is_left_of_both_is_the_last_megabatch_images_first():
    shows = np.array([1] * 13 + [0] * 7, dtype=np.int16)
    order = Order(np.arange(1, 21, dtype=np.int32), shows, 5, 0, "modality_length", epochs=1)
    assert order.steps == 4
    kinds = [[int(shows[row]) for row in order.members(step)] for step in range(4)]
    assert kinds[3] == [1, 1, 1, 0, 0]
    assert sorted(map(tuple, kinds[:3])) == [(0,) * 5, (1,) * 5, (1,) * 5]


def test_sorted_rows_pad_less():
    lengths, shows = arrays(20_000)

    def padded(grouping):
        order = Order(lengths, shows, 32, 0, grouping, epochs=1)
        cut = [rows[k : k + 8] for step in range(200) for rows in [order.members(step)] for k in range(0, 32, 8)]
        return sum(max(lengths[r] for r in rows) * len(rows) for rows in cut) / sum(lengths[r] for rows in cut for r in rows)

    assert padded("modality_length") < 1.35 < 1.6 < padded("none")


def test_ranks_are_found_across_blocks(monkeypatch):
    from students.data import order

    monkeypatch.setattr(order, "_BLOCK", 64)
    _, shows = arrays(1000)
    for images in (True, False):
        kind = order._Kind(shows, images)
        rows = np.flatnonzero((shows > 0) == images)
        assert kind.size == len(rows)
        picked = np.random.default_rng(0).permutation(len(rows))
        assert (kind.rows(picked) == rows[picked]).all()


def test_bad_numbers_are_one_line():
    lengths, shows = arrays(10)
    cases = [
        ({"per_step": 11, "epochs": 1}, "a step takes 11 row.* the corpus has 10"),
        ({"per_step": 0, "epochs": 1}, "a step takes 0"),
        ({"per_step": 4}, "give one of the two"),
        ({"per_step": 4, "epochs": 1, "steps": 1}, "give one of the two"),
        ({"per_step": 4, "steps": 0}, "no step at all"),
        ({"per_step": 4, "epochs": 0.4}, r"epochs is 0.4, of 2 step\(s\) each"),
        ({"per_step": 4, "steps": 1, "megabatch": 3}, "does not divide"),
        ({"per_step": 4, "steps": 1, "grouping": "modalty_length"}, "Did you mean 'modality_length'"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            Order(lengths, shows, seed=0, **options)
    with pytest.raises(IndexError, match=r"not in 0 \.\. 1"):
        Order(lengths, shows, 4, 0, epochs=1).members(2)


def test_the_papers_steps():
    """9,734 and 18,969 steps of 128 rows: what transformers counts, for the rows that those numbers stand for."""
    for rows, steps in ((1_246_000, 9734), (2_428_050, 18_969)):
        shows = np.lib.stride_tricks.as_strided(np.ones(1, np.int16), (rows,), (0,))
        assert Order(shows.astype(np.int32), shows, 128, 0, epochs=1).steps == steps
