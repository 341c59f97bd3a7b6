"""Known answers, invariants, coverage and parity of the intervals."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.base import UserError
from reports import decisions, ranks, statistics
from reports.statistics import difference, interval

MEAN = SimpleNamespace(name="toy@test", aggregation="mean")
CIRCULAR = SimpleNamespace(name="toy@circular", aggregation="mmbench_circular")
MME = SimpleNamespace(name="toy@mme", aggregation="mme")
F1 = SimpleNamespace(name="toy@f1", aggregation="pope_mean_f1")


def rows(scores, per_cluster=1, seed=None, **columns):
    n = len(scores)
    return pd.DataFrame(
        {
            "id": [f"q{k:05d}" for k in range(n)],
            "cluster": [f"c{k // per_cluster:05d}" for k in range(n)],
            "group": "all",
            "gold": "yes",
            "prediction": np.where(np.asarray(scores) > 0, "yes", "no"),
            "score": np.asarray(scores, dtype=float),
            "seed": seed,
            "protocol_version": 1,
        }
        | columns
    )


def test_independent_right_or_wrong_answers_get_wilsons_interval():
    found = interval(rows([1] * 30 + [0] * 10), MEAN)
    expected = stats.binomtest(30, 40).proportion_ci(method="wilson")
    assert found.method == "Wilson"
    assert (found.value, found.n, found.clusters) == (75.0, 40, 40)
    assert (found.low, found.high) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_circular_groups_get_wilsons_interval_over_groups():
    scores = [1, 1, 1, 1] * 3 + [1, 1, 1, 0] * 7
    found = interval(rows(scores, per_cluster=4), CIRCULAR)
    expected = stats.binomtest(3, 10).proportion_ci(method="wilson")
    assert (found.value, found.method, found.n, found.clusters) == (30.0, "Wilson", 40, 10)
    assert found.high == pytest.approx(100 * expected.high)


@pytest.mark.parametrize(("score", "note"), [(1, "all right"), (0, "all wrong")])
@pytest.mark.parametrize("per_cluster", [1, 4])
def test_all_right_and_all_wrong_are_said_and_never_certain(score, note, per_cluster):
    found = interval(rows([score] * 40, per_cluster), MEAN)
    assert found.note == note
    assert found.high - found.low > 5.0  # a bootstrap would claim certainty here
    # clusters are the units: four questions on one image are not four independent ones
    units = 40 // per_cluster
    assert found.high - found.low == pytest.approx(100 * (1.96**2 / (units + 1.96**2)), abs=0.05)


def test_no_spread_without_a_proportion_gives_no_interval():
    found = interval(rows([0.5] * 40), MEAN)
    assert (found.value, found.low, found.high) == (50.0, None, None)
    assert "no spread" in found.note


def test_clusters_not_rows_are_resampled():
    scores = np.repeat(np.random.default_rng(0).integers(0, 2, 60), 5)
    wide = interval(rows(scores, per_cluster=5), MEAN)
    narrow = interval(rows(scores, per_cluster=1), MEAN)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(np.sqrt(5), rel=0.15)


def test_parity_with_scipys_bootstrap():
    values = np.random.default_rng(1).beta(2, 1, 200)
    found = interval(rows(values), MEAN, resamples=4000)
    theirs = stats.bootstrap((100 * values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(2))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)


def test_draws_equal_recomputing_the_number_on_repeated_rows():
    generator = np.random.default_rng(3)
    data = rows(generator.integers(0, 2, 60), per_cluster=2, gold=["yes", "no"] * 30)
    data["prediction"] = np.where(data["score"] > 0, data["gold"], np.where(data["gold"] == "yes", "no", "yes"))
    sample = statistics.bootstrap(data, F1, resamples=5)
    counts = statistics.cluster_counts((0,) * 30, 5, 0, F1.name)
    for draw, count in zip(sample.draws, counts, strict=True):
        times = np.repeat(count.astype(int), 2)
        gold, said = (np.repeat((data[c] == "yes").to_numpy(), times) for c in ("gold", "prediction"))
        tp, wrong = (gold & said).sum(), (gold != said).sum()
        assert draw == pytest.approx(100 * 2 * tp / (2 * tp + wrong))


def test_strata_keep_the_number_of_clusters_per_part():
    counts = statistics.cluster_counts((0, 0, 0, 1, 1, 1, 1, 1), 50, 0, "x")
    assert (counts[:, :3].sum(axis=1) == 3).all()
    assert (counts[:, 3:].sum(axis=1) == 5).all()


def test_same_seed_same_interval_other_seed_other_draws():
    data = rows(np.random.default_rng(4).random(50))
    assert interval(data, MEAN) == interval(data, MEAN)
    assert interval(data, MEAN).low != interval(data, MEAN, seed=1).low


def test_row_order_does_not_matter():
    data = rows(np.random.default_rng(5).random(60), per_cluster=3)
    assert interval(data.sample(frac=1, random_state=0), MEAN) == interval(data, MEAN)


@pytest.mark.parametrize(("per_cluster", "clusters"), [(1, 150), (4, 80)])
def test_coverage_on_simulated_clusters(per_cluster, clusters):
    """95 % intervals hold the truth in 95 % of simulated studies, within what 300 simulations can tell (3 sigma: 3.8 %)."""
    generator, hits, simulations = np.random.default_rng(6), 0, 300
    for _ in range(simulations):
        # logit ability 0 with a shared effect per cluster is symmetric, so the true rate is exactly one half
        logit = np.repeat(generator.normal(0, 1.0, clusters), per_cluster)
        scores = generator.random(len(logit)) < 1 / (1 + np.exp(-logit))
        found = interval(rows(scores, per_cluster), MEAN, resamples=400)
        hits += found.low <= 50.0 <= found.high
    assert 0.912 <= hits / simulations <= 0.988


def test_coverage_of_the_paired_difference():
    generator, hits, simulations, clusters = np.random.default_rng(7), 0, 300, 100
    for _ in range(simulations):
        hard = np.repeat(generator.normal(0, 1.5, clusters), 3)
        a, b = (hard + generator.normal(0, 1, len(hard)) < 0 for _ in range(2))
        found = difference(rows(a, 3), rows(b, 3), MEAN, resamples=400)
        hits += found.low <= 0.0 <= found.high
    assert 0.912 <= hits / simulations <= 0.988


# ---- differences -----------------------------------------------------------------------------------------------------------


def test_identical_students_differ_by_exactly_zero():
    data = rows(np.random.default_rng(8).integers(0, 2, 90), per_cluster=3)
    found = difference(data, data.copy(), MEAN)
    assert (found.value, found.low, found.high, found.above, found.below, found.clusters_apart) == (0.0, 0.0, 0.0, 0, 0, 0)
    assert not found.resolved
    assert "alike" in found.note


@given(st.integers(0, 2**32 - 1), st.sampled_from([MEAN, F1]))
@settings(max_examples=25, deadline=None)
def test_swapping_students_flips_every_sign_exactly(seed, protocol):
    generator = np.random.default_rng(seed)
    a, b = (rows(generator.integers(0, 2, 60), per_cluster=2) for _ in range(2))
    one, other = difference(a, b, protocol, resamples=300), difference(b, a, protocol, resamples=300)
    assert (one.value, one.low, one.high) == (-other.value, -other.high, -other.low)
    assert (one.above, one.below, one.resolved) == (other.below, other.above, other.resolved)


def test_pairing_narrows_the_interval():
    hard = np.random.default_rng(9).normal(0, 2, 400)
    noise = np.random.default_rng(10).normal(0, 0.3, (2, 400))
    a, b = rows(hard + noise[0] < 0.2), rows(hard + noise[1] < 0.0)
    paired, alone = difference(a, b, MEAN), interval(a, MEAN)
    assert paired.high - paired.low < 0.7 * (alone.high - alone.low)


def test_a_planted_difference_is_found_and_counted():
    base = np.zeros(100)
    better = base.copy()
    better[:20] = 1
    found = difference(rows(better), rows(base), MEAN)
    assert (found.value, found.above, found.below, found.resolved) == (20.0, 20, 0, True)
    assert found.low > 0


def test_too_few_discordant_clusters_resolve_nothing():
    """Five clusters all in one direction: the bootstrap's interval excludes zero, an exact sign test cannot reject."""
    base = np.zeros(12)
    better = base.copy()
    better[:5] = 1
    found = difference(rows(better), rows(base), MEAN)
    assert found.low > 0
    assert not found.resolved
    assert found.note == "only 5 clusters differ: too few to resolve anything at this level"
    better[1:5] = 0
    assert difference(rows(better), rows(base), MEAN).note.startswith("only 1 cluster differs:")
    better[1:5] = 1
    better[:6] = 1
    assert difference(rows(better), rows(base), MEAN).resolved


def test_other_questions_or_versions_are_refused():
    a = rows([1, 0, 1, 0])
    with pytest.raises(UserError, match="different questions"):
        difference(a, a.iloc[:3], MEAN)
    with pytest.raises(UserError, match="versions differ"):
        difference(a, a.assign(protocol_version=2), MEAN)


# ---- seeds -----------------------------------------------------------------------------------------------------------------


def test_seeds_are_averaged_within_questions_and_counted():
    one, two = rows([1, 1, 0, 0] * 20, seed=0), rows([1, 0, 0, 0] * 20, seed=1)
    both = pd.concat([one, two])
    found = interval(both, MEAN)
    assert (found.value, found.n, found.seeds) == (37.5, 80, 2)
    averaged = one.assign(score=(one["score"] + two["score"].to_numpy()) / 2, seed=None)
    assert found.sampling_se == pytest.approx(interval(averaged, MEAN).sampling_se)
    assert found.training_sd == pytest.approx(25 / np.sqrt(2))
    assert found.high - found.low > 3 * (interval(averaged, MEAN).high - interval(averaged, MEAN).low)
    assert interval(one, MEAN).training_sd is None
    assert difference(both, one, MEAN).seeds == (2, 1)


def test_seeds_of_a_number_that_is_no_mean_are_averaged_as_numbers():
    """MME's acc+ of averaged scores is not the average of acc+: half a pair right twice is not one pair right."""
    pairs = {"group": ["a", "a", "a", "a"], "cluster": ["c0", "c0", "c1", "c1"]}
    one, two = rows([1, 0, 1, 1], seed=0, **pairs), rows([0, 1, 1, 1], seed=1, **pairs)
    assert interval(pd.concat([one, two]), MME).value == pytest.approx(interval(one, MME).value) == pytest.approx(75 + 50)


def test_seeds_on_other_questions_are_refused():
    with pytest.raises(UserError, match="different questions"):
        interval(pd.concat([rows([1, 0], seed=0), rows([1, 0, 1], seed=1)]), MEAN)


# ---- means and separation --------------------------------------------------------------------------------------------------


def test_mean_over_protocols_weighs_them_equally():
    frame = pd.DataFrame(
        {
            "protocol": ["a"] * 2 + ["b"] * 8,
            "id": [*"01", *"01234567"],
            "cluster": [*"01", *"01234567"],
            "nll": [1.0] * 2 + [3.0] * 8,
        }
    )
    assert statistics.bootstrap_mean(frame, "nll").value == 2.0
    with pytest.raises(UserError, match="no finite value"):
        statistics.bootstrap_mean(frame.assign(nll=np.nan), "nll")


def test_separation_is_mann_whitneys_probability():
    generator = np.random.default_rng(11)
    flag = generator.random(300) < 0.3
    values = np.round(generator.normal(0, 1, 300) - 0.8 * flag, 1)  # rounding makes ties
    found = ranks.separation(values, flag)
    u = stats.mannwhitneyu(values[~flag], values[flag]).statistic
    assert found.value == pytest.approx(u / (flag.sum() * (~flag).sum()))
    assert 0.5 < found.low < found.value < found.high
    assert ranks.separation(np.ones(40), np.arange(40) < 9).value == 0.5


@pytest.mark.parametrize("bad", [[], [0.5, np.nan], [1.5, 0.0]])
def test_bad_scores_are_refused(bad):
    with pytest.raises(UserError):
        interval(rows(bad), MEAN)


# ---- tests, corrections, seeds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("above", "below"), [(0, 0), (1, 0), (5, 1), (12, 12), (40, 22), (3, 17)])
def test_mcnemar_is_statsmodels(above, below):
    from statsmodels.stats.contingency_tables import mcnemar

    theirs = mcnemar([[7, above], [below, 9]], exact=True).pvalue
    assert statistics.mcnemar(above, below) == pytest.approx(theirs if above + below else 1.0)
    if above + below:
        one = np.r_[np.ones(above), np.zeros(below), np.ones(7), np.zeros(9)]
        other = np.r_[np.zeros(above), np.ones(below), np.ones(7), np.zeros(9)]
        found = difference(rows(one), rows(other), MEAN, resamples=100)
        assert (found.test, found.discordant) == ("exact McNemar", (above, below))
        assert found.p == pytest.approx(theirs)


def test_mcnemar_does_not_apply_where_units_are_not_right_or_wrong():
    generator = np.random.default_rng(12)
    for protocol, per_cluster in ((MEAN, 3), (F1, 2)):
        a, b = (rows(generator.integers(0, 2, 60), per_cluster=per_cluster) for _ in range(2))
        found = difference(a, b, protocol, resamples=100)
        assert (found.test, found.discordant) == ("bootstrap", None)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_holm_is_statsmodels(p):
    from statsmodels.stats.multitest import multipletests

    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_refuses_what_is_no_p_value():
    with pytest.raises(UserError, match="no p-value"):
        statistics.holm([0.1, float("nan")])


@given(st.integers(0, 2**32 - 1), st.floats(0.8, 0.999))
@settings(max_examples=40, deadline=None)
def test_p_value_and_interval_agree(seed, level):
    draws = np.random.default_rng(seed).normal(1.8, 1, 999).round(2)
    low, high = statistics.percentile_ends(draws, level)
    assert (decisions.p_two_sided(draws) <= 1 - level + 1e-12) == (low > 0 or high < 0)


def test_bca_is_scipys_on_a_skewed_mean():
    values = 1 - np.random.default_rng(13).beta(1, 6, 60)
    found = interval(rows(values), MEAN, resamples=8000)
    theirs = stats.bootstrap((100 * values,), np.mean, n_resamples=8000, method="BCa", rng=np.random.default_rng(2))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert found.method == "BCa cluster bootstrap"
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.05 * width)


def test_identical_trainings_differ_by_exactly_zero():
    data = pd.concat([rows(np.random.default_rng(k).integers(0, 2, 90), per_cluster=3, seed=k) for k in range(3)])
    found = difference(data, data.copy(), MEAN)
    assert (found.value, found.low, found.high, found.p, found.detectable, found.resolved) == (0, 0, 0, 1, None, False)


@pytest.mark.parametrize("other", [(0, 1, 2), (5, 6)])
def test_swapping_students_of_several_trainings_flips_every_sign(other):
    a, b = (
        pd.concat([rows(np.random.default_rng(k + 9).random(60) * w, seed=k) for k in seeds])
        for w, seeds in ((1.0, (0, 1, 2)), (0.9, other))
    )
    one, back = difference(a, b, MEAN, resamples=300), difference(b, a, MEAN, resamples=300)
    assert (one.value, one.low, one.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-9)
    assert one.p == back.p


def test_training_variation_is_told_apart_from_sampling_variation():
    """Trainings far apart on many questions: sampling says precise, seeds say not."""
    generator = np.random.default_rng(14)
    trained = pd.concat([rows(generator.random(4000) < p, seed=k) for k, p in enumerate((0.4, 0.5, 0.6))])
    found = interval(trained, MEAN)
    assert found.training_sd == pytest.approx(10, abs=2)
    assert found.sampling_se < 0.6
    assert found.high - found.low > 20
    alone = interval(trained[trained["seed"] == 1], MEAN)
    assert alone.training_sd is None and alone.high - alone.low < 4


def test_a_detectable_difference_is_detected_with_the_power_promised():
    generator, found, simulations = np.random.default_rng(15), 0, 200
    base = rows(generator.random(400) < 0.5)
    first = difference(rows(generator.random(400) < 0.5), base, MEAN, resamples=400)
    shift = first.detectable / 100
    for _ in range(simulations):
        a, b = generator.random(400) < 0.5 + shift / 2, generator.random(400) < 0.5 - shift / 2
        found += statistics.mcnemar(int((a & ~b).sum()), int((~a & b).sum())) <= 0.05
    assert 0.7 <= found / simulations <= 0.9  # 80 % within three standard errors, and what an exact test costs


def test_needed_n_is_where_the_detectable_difference_is_the_distance():
    n = statistics.needed_n(400, 2.0, 1.0)
    assert n == pytest.approx(400 * (2.0 * (1.6449 + 0.8416)) ** 2, rel=1e-3)
    assert statistics.needed_n(400, 2.0, 0.0) is None
    assert statistics.needed_n(400, 0.0, 1.0) == 1


def test_non_inferiority_decides_by_its_limits():
    draws = np.random.default_rng(16).normal(-1.0, 0.5, 1999)
    for margin, inferior, fine in ((0.0, True, False), (1.0, False, False), (3.0, False, True)):
        found = statistics.non_inferiority(draws, margin)
        assert (found.p_inferior <= 0.05, found.p_noninferior <= 0.05) == (inferior, fine)
        assert (found.high < -margin, found.low > -margin) == (inferior, fine)
    with pytest.raises(UserError, match="margin is -1"):
        statistics.non_inferiority(draws, -1)


def test_a_combined_number_is_the_weighted_sum_and_needs_equal_seeds():
    generator = np.random.default_rng(17)
    one = statistics.bootstrap(rows(generator.random(50)), MEAN, 500)
    other = statistics.bootstrap(rows(generator.random(80)), SimpleNamespace(name="more@test", aggregation="mean"), 500)
    both = statistics.combine([(0.5, one), (0.5, other)], "average")
    found = statistics.summarise(both)
    assert found.value == pytest.approx((one.value + other.value) / 2)
    assert (found.n, found.clusters) == (130, 130)
    expected = np.hypot(one.draws.std(ddof=1), other.draws.std(ddof=1)) / 2
    assert found.sampling_se == pytest.approx(expected, rel=0.1)
    trained = statistics.bootstrap(rows(generator.random(50), seed=0), MEAN, 500)
    with pytest.raises(UserError, match="other seeds"):
        statistics.combine([(0.5, trained), (0.5, other)], "average")
