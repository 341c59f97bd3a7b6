"""The distiller on a tiny model: what it writes, that it repeats itself, and that it stops when it should."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from harness.base import UserError
from students import checkpoint
from students.data.samples import TrainingSet
from students.distil import DistilOptions
from students.dynamics import BETAS
from students.models.llava import LlavaAdapter
from students.recipe import Variant, parse

OPTIONS = DistilOptions(steps=5, rows=2, turns=3, warmup=1, betas_every=2, flush_every=3)  # the fixture's own
LINE = [
    "step",
    "loss",
    "weight",
    "weighted",
    "regulariser",
    "total",
    "lr",
    "weighting_lr",
    "grad_norm",
    "teacher_entropy",
    "samples",
    "tokens",
    "seconds",
]


def dynamics(out):
    return [json.loads(line) for line in (out / "dynamics.jsonl").read_text().splitlines()]


def digest(out):
    return checkpoint.digest_weights(out / "student")


@pytest.mark.parametrize("recipe", ["ce", "fkl", "ce+fkl@fixed", "ce+cosine_probs@task", "ce+cosine_probs+fkl@instance"])
def test_every_student_writes_the_contracts_files(train, data, signal, recipe):
    ticks = []
    out = train(recipe, progress=lambda done, total: ticks.append((done, total)))
    channels = list(parse(recipe).channels)
    lines = dynamics(out)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert ticks == [(3, 5), (5, 5)]
    for line in lines:
        assert list(line) == LINE
        for field in ("loss", "weight", "weighted"):
            assert list(line[field]) == channels
        assert line["total"] == pytest.approx(sum(line["weighted"].values()) + line["regulariser"], rel=1e-5)
        assert line["samples"] > 0 < line["tokens"]
    betas = pd.read_parquet(out / "betas.parquet")
    assert list(betas.columns) == list(BETAS)
    energies = [c for c in channels if c != "ce"]
    assert sorted(betas["channel"].unique()) == energies
    if energies:
        assert sorted(betas["step"].unique()) == [1, 2, 4, 5]
        for step, channel in ((1, energies[0]), (4, energies[-1])):
            part, line = betas[(betas["step"] == step) & (betas["channel"] == channel)], lines[step - 1]
            assert len(part) == part["id"].nunique() == line["samples"]
            assert part["beta"].mean() == pytest.approx(line["weight"][channel], rel=1e-5)
            assert part["energy"].mean() == pytest.approx(line["loss"][channel], rel=1e-5)
        where = [signal.ids.index(i) for i in betas["id"]]
        np.testing.assert_allclose(betas["teacher_entropy"], signal.entropy[where])
        assert (betas["teacher_correct"] == signal.correct[where]).all()
        assert (betas["noisy"] == [data.samples[k].noisy for k in where]).all()
    with np.load(out / "snapshots.npz") as file:
        assert (file["early_step"], file["late_step"]) == (1, 5)
        for name, step in (("student_early", 1), ("teacher_early", 1), ("student_late", 5), ("teacher_late", 5)):
            assert len(file[name]) == len(file["edges"]) - 1
            assert file[name].sum() == lines[step - 1]["tokens"] * signal.vocabulary_size


def test_the_checkpoint_loads_with_transformers_alone(train):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    out = train("ce+fkl@instance")
    model = AutoModelForImageTextToText.from_pretrained(out / "student")
    AutoProcessor.from_pretrained(out / "student", backend="pil")
    assert checkpoint.digest_tensors(model.state_dict().items()) == checkpoint.digest_tensors(
        LlavaAdapter.load(out / "student").model.state_dict().items()
    )


def test_the_weighting_lies_beside_the_student_and_loads_again(train):
    out = train("ce+fkl@instance")
    assert not [p.name for p in (out / "student").iterdir() if "weighting" in p.name or "optim" in p.name]
    assert not [
        name
        for name, _ in checkpoint.tensors(out / "student" / "model.safetensors")
        if name.startswith("gate") or name == "raw"
    ]
    facts = json.loads((out / "weighting.json").read_text())
    assert (facts["name"], facts["channels"], facts["d"]) == ("beta_instance", ["ce", "fkl"], {"fkl": 1.0})
    assert facts["betas"] == dynamics(out)[-1]["weight"]
    weighting = checkpoint.load_weighting(out)
    table = {"ce": torch.ones(2), "fkl": torch.ones(2)}
    weights = weighting(table, features=torch.randn(2, facts["feature_dim"])).weights["fkl"]
    assert (weights != 1).all()
    assert {p.dtype for p in weighting.parameters()} == {torch.float32}
    (out / "weighting.safetensors").write_bytes((out / "weighting.safetensors").read_bytes()[:-3])
    with pytest.raises(UserError, match=r"weighting\.safetensors"):
        checkpoint.load_weighting(out)


@pytest.mark.parametrize("recipe", ["ce+fkl@instance", "ce+cosine_probs@task"])
def test_one_seed_gives_one_student(train, recipe):
    first, again, other = train(recipe, "a"), train(recipe, "b"), train(recipe, "c", seed=1)
    assert digest(first) == digest(again) != digest(other)
    assert [{**line, "seconds": 0} for line in dynamics(first)] == [{**line, "seconds": 0} for line in dynamics(again)]
    assert (first / "betas.parquet").read_bytes() == (again / "betas.parquet").read_bytes()
    assert (first / "weighting.safetensors").read_bytes() == (again / "weighting.safetensors").read_bytes()


def test_the_student_learns_and_the_tower_stays(train, folders):
    def tower(folder):
        return checkpoint.digest_tensors(
            (n, t) for n, t in checkpoint.tensors(folder / "model.safetensors") if "vision_tower" in n
        )

    out = train("ce+fkl@task")
    assert tower(out / "student") == tower(folders / "base")
    assert digest(out) != checkpoint.digest_weights(folders / "base")
    long = dynamics(train("ce", options=OPTIONS.model_copy(update={"steps": 40, "rows": 5})))
    assert long[-1]["loss"]["ce"] < 0.7 * long[0]["loss"]["ce"]


def test_every_recipe_sees_the_same_samples_in_the_same_order(train):
    seen = {}
    for recipe in ("fkl", "ce+fkl@fixed", "ce+fkl@task", "ce+cosine_probs@instance"):
        betas = pd.read_parquet(train(recipe) / "betas.parquet")
        seen[recipe] = list(zip(betas["step"], betas["id"], strict=True))
    assert len({tuple(v) for v in seen.values()}) == 1


def test_a_weight_of_zero_is_ce_bit_for_bit(train):
    zero = train("ce+fkl@fixed@none", variant=Variant(weighting={"weights": 0.0}))
    assert digest(zero) == digest(train("ce"))
    assert digest(zero) != digest(train("ce+fkl@fixed"))


def test_variants_reach_weighting_and_energies(train):
    four = dynamics(train("ce+fkl@fixed@l4", variant=Variant(weighting={"weights": 4.0})))
    assert {line["weight"]["fkl"] for line in four} == {4.0}
    out = train(
        "ce+fkl@instance@v",
        variant=Variant(weighting={"features": "teacher_prompt", "d": 2.0}, energies={"fkl": {"temperature": 2.0}}),
    )
    facts = json.loads((out / "weighting.json").read_text())
    assert facts["d"] == {"fkl": 2.0}
    assert facts["needs"] == ["teacher_prompt"]
    assert facts["feature_dim"] == 32
    assert dynamics(out)[0]["loss"]["fkl"] != four[0]["loss"]["fkl"]
    with pytest.raises(UserError, match="cosine_probs"):
        train("ce+fkl@fixed@x", variant=Variant(energies={"cosine_probs": {"temperature": 2.0}}))
    with pytest.raises(UserError, match="weights"):
        train("ce+fkl@fixed@y", variant=Variant(weighting={"weigths": 2.0}))


def test_fkl_alone_is_the_mean_energy(train):
    for line in dynamics(train("fkl")):
        assert line["total"] == pytest.approx(line["loss"]["fkl"], rel=1e-6)
        assert line["regulariser"] == 0


def test_the_weighting_has_its_own_constant_rate(train):
    lines = dynamics(train("ce+fkl@task", options=OPTIONS.model_copy(update={"weighting_lr": 0.01})))
    assert [line["weighting_lr"] for line in lines] == [pytest.approx(0.1)] * 5
    assert len({line["lr"] for line in lines}) > 1
    assert lines[0]["weight"]["fkl"] == pytest.approx(1)
    assert lines[4]["weight"]["fkl"] != pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("step", "flush"), [(1, 3), (4, 3), (4, 100)])
def test_a_nan_stops_the_run_and_is_located(train, signal, tmp_path, step, flush):
    """Poison one teacher token of one sample that is first seen at a known step."""
    options = OPTIONS.model_copy(update={"rows": 1, "betas_every": 1, "flush_every": flush})
    clean = pd.read_parquet(train("ce+fkl@fixed", "clean", options=options) / "betas.parquet")
    first = clean.groupby("id")["step"].min()
    victim = first[first == step].index
    broken = np.array(signal.logits_array)
    broken[signal.offsets[signal.ids.index(victim[0])], 3] = np.nan
    with pytest.raises(FloatingPointError) as error:
        train("ce+fkl@fixed", "bad", signal=replace(signal, logits_array=broken), options=options)
    message = str(error.value)
    assert f"channel 'fkl' is not finite at step {step};" in message
    assert f"1 of {(clean['step'] == step).sum()} samples: {victim[0]}. " in message
    assert len(dynamics(tmp_path / "bad")) == step - 1
    failure = json.loads((tmp_path / "bad" / "failure" / "failure.json").read_text())
    assert (failure["step"], failure["bad"]) == (step, [victim[0]])
    kept = dict(checkpoint.tensors(tmp_path / "bad" / "failure" / "failure.safetensors"))
    assert kept["teacher_logits"].isnan().sum() == 1
    assert kept["student_logits"].shape == kept["teacher_logits"].shape
    assert kept["losses"].isnan().sum() == 1


def test_nothing_that_is_not_finite_is_saved(train, signal, tmp_path):
    broken = np.full_like(signal.logits_array, np.nan)
    with pytest.raises(FloatingPointError, match="at step 1"):
        train("fkl", "bad", signal=replace(signal, logits_array=broken))
    assert not (tmp_path / "bad" / "student").exists()
    assert dynamics(tmp_path / "bad") == []


def test_inputs_that_do_not_belong_together_are_refused(train, data, encoded, signal, folders):
    with pytest.raises(UserError, match="needs a teacher signal"):
        train("ce+fkl", signal=None)
    swapped = TrainingSet((data.samples[1], data.samples[0], *data.samples[2:]), data.images)
    with pytest.raises(UserError, match="order"):
        train("ce+fkl", data=swapped)
    with pytest.raises(UserError, match="encoded"):
        train("ce", data=TrainingSet(data.samples[:5], data.images))
    other = np.array(signal.labels_array)
    other[:] += 1
    with pytest.raises(UserError, match="another reply of sample"):
        train("ce+fkl", signal=replace(signal, labels_array=other))
    with pytest.raises(UserError, match="different tokenizers"):
        train("ce+fkl", signal=replace(signal, vocabulary=(*signal.vocabulary[:-1], "other")))
    with pytest.raises(UserError, match="head has"):
        train("ce+fkl", signal=replace(signal, logits_array=signal.logits_array[:, :-1]))
    with pytest.raises(UserError, match="reads vision of the teacher"):
        train("fd", teacher=None)
    with pytest.raises(UserError, match="nowhere is no folder"):
        train("ce", base=folders / "nowhere")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="cuda"):
            train("ce", device="cuda")


def test_bf16_trains_on_float32_losses_and_a_float32_weighting(train):
    mixed = train("ce+fkl@instance", "mixed", options=OPTIONS.model_copy(update={"precision": "bf16"}))
    plain = train("ce+fkl@instance", "plain")
    assert digest(mixed) != digest(plain)
    for one, other in zip(dynamics(mixed), dynamics(plain), strict=True):
        assert one["loss"]["fkl"] == pytest.approx(other["loss"]["fkl"], rel=0.1)
    assert {t.dtype for _, t in checkpoint.tensors(mixed / "weighting.safetensors")} == {torch.float32}


def test_ce_needs_no_teacher(train, signal):
    with_teacher, without = train("ce", "with"), train("ce", "without", signal=None)
    assert digest(with_teacher) == digest(without)
    with np.load(without / "snapshots.npz") as file:
        assert set(file) == {"edges", "student_early", "student_late", "early_step", "late_step"}


def test_the_callers_determinism_setting_comes_back(train):
    before = torch.are_deterministic_algorithms_enabled()
    train("ce")
    assert torch.are_deterministic_algorithms_enabled() == before


def test_damaged_checkpoints_are_named(train):
    weights = train("ce") / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        checkpoint.digest_weights(weights.parent)


def test_what_a_training_cost_is_on_record(train, signal):
    out = train("ce+fkl@fixed", "cost")
    cost = json.loads((out / "cost.json").read_text())
    lines = dynamics(out)
    assert cost["samples_seen"] == sum(line["samples"] for line in lines)
    assert cost["seconds"] >= sum(line["seconds"] for line in lines)
    assert cost["teacher_passes_shared"] == len(signal.ids)
    assert cost["teacher_passes_own"] == 0
    assert cost["device"] == "cpu"
    assert cost["peak_memory_bytes"] is None or cost["peak_memory_bytes"] > 50e6
    assert cost["memory"].startswith("resident memory")


def test_a_live_teachers_passes_are_this_students_own(train):
    out = train("ce+fd@fixed", "live")
    cost = json.loads((out / "cost.json").read_text())
    assert cost["teacher_passes_own"] == cost["samples_seen"] > 0
