"""Aggregations: golden values, additivity over clusters, and a bootstrap as one matrix product."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.base import UnknownName, UserError
from tasks.aggregate import aggregate, cluster_sums, names


def frame(rows):
    columns = ["id", "cluster", "group", "gold", "prediction", "score"]
    return pd.DataFrame([(str(n), *row) for n, row in enumerate(rows)], columns=columns)


def random_rows(seed: int, pairs: int = 12) -> pd.DataFrame:
    """Pairs within three groups, so that every aggregation accepts them."""
    rng = np.random.default_rng(seed)
    rows = []
    for pair in range(pairs):
        for _ in range(2):
            gold, said = rng.choice(["yes", "no"], size=2)
            rows.append((f"c{pair}", f"g{pair % 3}", gold, said, float(gold == said)))
    return frame(rows)


def test_mean_is_per_question_not_per_cluster():
    rows = frame([("a", "g", "x", "x", 1.0), ("a", "g", "x", "x", 1.0), ("a", "g", "x", "x", 0.5), ("b", "g", "x", "y", 0.0)])
    assert aggregate(rows, "mean") == pytest.approx(62.5)
    assert aggregate(rows, "pope_accuracy") == pytest.approx(62.5)


def test_mme_adds_accuracy_and_accuracy_plus_over_categories():
    rows = frame([
        ("p1", "count", "yes", "yes", 1.0), ("p1", "count", "no", "no", 1.0),
        ("p2", "count", "yes", "yes", 1.0), ("p2", "count", "no", "yes", 0.0),
        ("p3", "OCR", "yes", "no", 0.0), ("p3", "OCR", "no", "no", 1.0),
    ])  # fmt: skip
    assert aggregate(rows, "mme") == pytest.approx((75 + 50) + (50 + 0))


def test_mme_refuses_half_a_pair_and_a_pair_across_categories():
    rows = frame([("p1", "count", "yes", "yes", 1.0), ("p1", "count", "no", "no", 1.0), ("p2", "count", "no", "no", 1.0)])
    with pytest.raises(UserError, match="'p2' holds 1 question"):
        aggregate(rows, "mme")
    rows = frame([("p1", "count", "yes", "yes", 1.0), ("p1", "OCR", "no", "no", 1.0)])
    with pytest.raises(UserError, match="2 category"):
        aggregate(rows, "mme")


def test_circular_counts_a_group_only_if_every_rotation_is_right():
    right, wrong = ("A", "A", 1.0), ("B", "A", 0.0)
    rows = frame([("q1", "g", *right), ("q1", "g", *right), ("q2", "g", *right), ("q2", "g", *wrong)])
    assert aggregate(rows, "mmbench_circular") == pytest.approx(50.0)


def test_pope_f1_by_hand_per_split_with_equal_weight():
    rows = frame([
        ("a", "random", "yes", "yes", 1.0), ("a", "random", "no", "yes", 0.0), ("b", "random", "yes", "no", 0.0),
        ("b", "popular", "yes", "yes", 1.0), ("c", "popular", "no", "no", 1.0),
        ("c", "adversarial", "yes", "perhaps", 0.0), ("c", "adversarial", "yes", "Yes", 1.0),
    ])  # fmt: skip
    assert aggregate(rows, "pope_mean_f1") == pytest.approx(100 * (0.5 + 1.0 + 2 / 3) / 3)


def test_a_model_that_never_says_yes_has_f1_zero():
    rows = frame([("a", "random", "yes", "no", 0.0), ("a", "random", "no", "no", 1.0)])
    assert aggregate(rows, "pope_mean_f1") == 0.0


@pytest.mark.parametrize("aggregation", names())
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_resample_is_a_matrix_product(aggregation, seed):
    """The sums of clusters drawn with repetition give the number of the rows drawn with repetition."""
    rows = random_rows(seed)
    table = cluster_sums(rows, aggregation)
    rng = np.random.default_rng(seed)
    within = [np.flatnonzero(table.strata == stratum) for stratum in sorted(set(table.strata))]
    drawn = np.concatenate([rng.choice(members, len(members)) for members in within])
    counts = np.bincount(drawn, minlength=len(table.clusters)).astype(float)
    parts = []
    for copy, cluster in enumerate(drawn):
        part = rows[rows["cluster"] == table.clusters[cluster]]
        parts.append(part.assign(id=part["id"] + f"/{copy}", cluster=part["cluster"] + f"/{copy}"))
    resample = pd.concat(parts)
    lost = aggregation == "pope_mean_f1" and set(resample["group"]) != set(rows["group"])
    expected = np.nan if lost else aggregate(resample, aggregation)  # a split without questions has no F1
    got = table.value(np.stack([counts, counts]) @ table.sums)
    assert got.shape == (2,)
    np.testing.assert_allclose(got, expected, atol=1e-9)


@pytest.mark.parametrize("aggregation", names())
def test_the_order_of_rows_does_not_matter(aggregation):
    rows = random_rows(3)
    table, shuffled = (cluster_sums(r, aggregation) for r in (rows, rows.sample(frac=1, random_state=1)))
    assert table.clusters == shuffled.clusters == sorted(set(rows["cluster"]))
    np.testing.assert_array_equal(table.sums, shuffled.sums)


def test_only_mme_is_resampled_within_categories():
    rows = random_rows(0)
    group = rows.drop_duplicates("cluster").set_index("cluster")["group"]
    for aggregation in names():
        table = cluster_sums(rows, aggregation)
        expected = [sorted(set(group)).index(group[c]) for c in table.clusters] if aggregation == "mme" else [0] * 12
        assert table.strata.tolist() == expected


def test_bad_rows_are_refused():
    rows = random_rows(0)
    with pytest.raises(UnknownName, match="Did you mean 'mmbench_circular'"):
        cluster_sums(rows, "mmbench_circlar")
    with pytest.raises(UserError, match="cluster, score"):
        cluster_sums(rows.drop(columns=["score", "cluster"]), "mean")
    with pytest.raises(UserError, match="no scored questions"):
        cluster_sums(rows.iloc[:0], "mean")
    with pytest.raises(UserError, match="'0' is scored more than once"):
        cluster_sums(pd.concat([rows, rows.iloc[:1]]), "mean")
    for bad in (np.nan, -0.1, 1.5):
        with pytest.raises(UserError, match="question '5' has the score"):
            cluster_sums(rows.assign(score=[bad if n == 5 else s for n, s in enumerate(rows["score"])]), "mean")
