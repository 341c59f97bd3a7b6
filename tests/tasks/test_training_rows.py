"""Training rows: prompts as in the evaluation, faults at their stated rates, and every victim on record."""

from __future__ import annotations

import pytest

import tasks
from harness.base import UserError
from tasks import catalogue, training

SIX = [f"{benchmark}@miniature" for benchmark in ("scienceqa", "gqa", "textvqa", "pope", "mmbench", "mme")]


@pytest.fixture(scope="module")
def protocols():
    return [tasks.protocol(name) for name in SIX]


@pytest.fixture(scope="module")
def clean(protocols):
    return tasks.training_rows(protocols, images=150)


@pytest.fixture(scope="module")
def faulty(protocols):
    return tasks.training_rows(protocols, images=150, label_noise=0.25, blindness=0.2, seed=1)


def test_columns_and_images(clean):
    assert list(clean.rows.columns) == list(training.COLUMNS)
    assert clean.rows["id"].is_unique
    assert set(clean.rows["benchmark"]) == {name.split("@")[0] for name in SIX}
    shown = set(clean.rows["image"].dropna())
    assert shown == set(clean.images)
    assert clean.rows["image"].isna().any(), "ScienceQA has questions without an image"
    assert not clean.rows["noisy"].any() and not clean.rows["blind"].any()
    assert (clean.rows["answer"] == clean.rows["clean_answer"]).all()


def test_prompts_are_those_of_the_evaluation(clean, protocols):
    for protocol in protocols:
        questions = catalogue.load(protocol, split="train", options={"images": 150})
        expected = tasks.prompts(protocol, questions, scored=False)
        assert clean.rows.loc[clean.rows["benchmark"] == protocol.benchmark, "prompt"].tolist() == expected


def test_no_training_image_is_shown_in_the_test(clean, protocols):
    for protocol in protocols:
        assert not set(clean.images) & set(tasks.load(protocol).images)


def test_faults_at_their_rates_and_on_record(clean, faulty):
    rows = faulty.rows
    assert rows["id"].equals(clean.rows["id"])
    assert rows["clean_answer"].equals(clean.rows["answer"])
    assert (rows["noisy"] == (rows["answer"] != rows["clean_answer"])).all()
    assert rows["noisy"].mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(rows)) ** 0.5)
    per_image = rows.dropna(subset=["image"]).groupby("image")["blind"]
    assert (per_image.nunique() == 1).all()
    assert per_image.first().mean() == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / len(faulty.images)) ** 0.5)
    assert not rows.loc[rows["image"].isna(), "blind"].any()


def test_noisy_answers_are_wrong_replies_of_the_question(faulty, protocols):
    for protocol in protocols:
        questions = catalogue.load(protocol, split="train", options={"images": 150})
        wrong = {f"{protocol.benchmark}/{q.id}": q.wrong for q in questions.questions}
        rows = faulty.rows[(faulty.rows["benchmark"] == protocol.benchmark) & faulty.rows["noisy"]]
        assert len(rows)
        assert all(row.answer in wrong[row.id] for row in rows.itertuples())


def test_victims_depend_on_the_seed_alone_and_grow_with_the_rate(faulty, protocols):
    alone = tasks.training_rows(protocols[:2], images=100, label_noise=0.25, blindness=0.2, seed=1).rows.set_index("id")
    assert alone.equals(faulty.rows.set_index("id").loc[alone.index])
    more = tasks.training_rows(protocols[:2], images=100, label_noise=0.5, blindness=0.5, seed=1).rows.set_index("id")
    assert (more["noisy"] | ~alone["noisy"]).all() and more["noisy"].sum() > alone["noisy"].sum()
    assert (more["blind"] | ~alone["blind"]).all() and more["blind"].sum() > alone["blind"].sum()
    other = tasks.training_rows(protocols[:2], images=100, label_noise=0.25, blindness=0.2, seed=2).rows.set_index("id")
    assert not other["noisy"].equals(alone["noisy"]) and not other["blind"].equals(alone["blind"])


# ---- noise where the teacher sees, blindness where the labels are right ----

TWO = {"label_noise": 0.45, "blindness": 0.25, "complementary": True, "seed": 3}
BLIND = ("textvqa", "pope", "mmbench")


def near(share, rate, count):
    """Within four standard errors of a binomial rate."""
    return share == pytest.approx(rate, abs=4 * (rate * (1 - rate) / count) ** 0.5)


@pytest.fixture(scope="module")
def planted(protocols):
    return tasks.training_rows(protocols, images=150, **TWO).rows


def test_noise_and_blindness_are_complementary_at_their_rates_and_on_record(clean, planted):
    assert not (planted["noisy"] & planted["blind"]).any()
    assert not planted.loc[planted["image"].isna(), ["noisy", "blind"]].any(axis=None)
    assert planted["clean_answer"].equals(clean.rows["answer"])
    assert (planted["noisy"] == (planted["answer"] != planted["clean_answer"])).all()
    shown = planted.dropna(subset=["image"])
    healthy = shown[~shown["blind"]]
    assert near(healthy["noisy"].mean(), 0.45, len(healthy))
    per_image = shown.groupby("image")["blind"]
    assert (per_image.nunique() == 1).all()
    assert near(per_image.first().mean(), 0.25, len(per_image))


def test_complementary_noise_is_the_same_noise_where_the_teacher_is_healthy(planted, protocols):
    everywhere = tasks.training_rows(protocols, images=150, **{**TWO, "complementary": False}).rows
    assert everywhere["blind"].equals(planted["blind"])
    healthy = planted["image"].notna() & ~planted["blind"]
    assert everywhere[healthy].equals(planted[healthy])
    assert everywhere.loc[~healthy, "noisy"].any()


def test_raising_a_complementary_rate_only_adds(planted, protocols):
    noisier = tasks.training_rows(protocols, images=150, **{**TWO, "label_noise": 0.7}).rows
    assert (noisier["noisy"] | ~planted["noisy"]).all() and noisier["noisy"].sum() > planted["noisy"].sum()
    assert noisier.loc[planted["noisy"], "answer"].equals(planted.loc[planted["noisy"], "answer"])
    assert noisier["blind"].equals(planted["blind"])
    blinder = tasks.training_rows(protocols, images=150, **{**TWO, "blindness": 0.5}).rows
    assert (blinder["blind"] | ~planted["blind"]).all() and blinder["blind"].sum() > planted["blind"].sum()
    still = ~blinder["blind"]
    assert blinder.loc[still, "noisy"].equals(planted.loc[still, "noisy"])  # noise leaves only where blindness comes


def test_complementary_faults_do_not_depend_on_the_other_rows(planted, protocols):
    alone = tasks.training_rows(protocols[:2], images=100, **TWO).rows.set_index("id")
    assert alone.equals(planted.set_index("id").loc[alone.index])


def test_blind_benchmarks_are_blind_on_every_image_and_the_others_noisy(protocols):
    made = tasks.training_rows(protocols, images=150, label_noise=0.45, complementary=True, blind_benchmarks=BLIND).rows
    inside = made["benchmark"].isin(BLIND)
    assert (made["blind"] == (inside & made["image"].notna())).all()
    assert not made.loc[inside, "noisy"].any()
    assert near(made.loc[~inside, "noisy"].mean(), 0.45, (~inside).sum())
    text = made[~inside & made["image"].isna()]
    assert near(text["noisy"].mean(), 0.45, len(text)), "rows without an image are as noisy as the rest of their benchmark"
    shared = set(made.loc[inside, "image"].dropna()) & set(made.loc[~inside, "image"].dropna())
    assert shared, "one image is seen in one benchmark and not in another"


def test_blind_benchmarks_without_complementary_noise(protocols):
    made = tasks.training_rows(protocols, images=150, label_noise=0.45, blind_benchmarks=["pope"]).rows
    assert set(made.loc[made["blind"], "benchmark"]) == {"pope"}
    assert near(made["noisy"].mean(), 0.45, len(made))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"complementary": True, "blindness": 0.2}, "label_noise is 0"),
        ({"complementary": True, "label_noise": 0.2}, "nothing is blind"),
        ({"complementary": True, "label_noise": 0.2, "blindness": 1.0}, "leaves no healthy image"),
        ({"blindness": 0.2, "blind_benchmarks": ["pope"]}, "one of the two"),
        ({"blind_benchmarks": ["pope", "pope"]}, "each benchmark once"),
        ({"blind_benchmarks": ["popo"]}, "'popo'. Did you mean 'pope'"),
        (
            {"complementary": True, "label_noise": 0.2, "blind_benchmarks": [name.split("@")[0] for name in SIX]},
            "which are all benchmarks",
        ),
    ],
)
def test_combinations_that_make_no_sense(protocols, options, message):
    with pytest.raises(UserError) as caught:
        tasks.training_rows(protocols, images=5, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_requests(protocols, monkeypatch):
    with pytest.raises(UserError, match=r"label_noise is 1\.5; allowed: 0 to 1"):
        tasks.training_rows(protocols, label_noise=1.5)
    with pytest.raises(UserError, match="blindness is -1"):
        tasks.training_rows(protocols, blindness=-1)
    with pytest.raises(UserError, match="one protocol per benchmark, got pope@miniature, pope@miniature"):
        tasks.training_rows([protocols[3], protocols[3]])
    with pytest.raises(UserError, match="got none"):
        tasks.training_rows([])
    import toys

    monkeypatch.setattr(training, "load", lambda *_, **__: _without_wrong(toys.questions("gqa")))
    with pytest.raises(UserError, match="'gqa/g0' carries no wrong replies"):
        tasks.training_rows([tasks.protocol("gqa@miniature")], label_noise=0.1)


def _without_wrong(questions):
    from dataclasses import replace

    return replace(questions, questions=tuple(replace(q, wrong=()) for q in questions.questions))
