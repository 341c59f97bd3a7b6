"""How a step is put together: micro-batches, hooks, shifted labels, padded heads, features."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch

from harness.base import UserError
from students import checkpoint, energies, features, weightings
from students.batch import TokenBatch, label_nll, sample_mean
from students.data.pack import collate
from students.losses import Losses
from students.models.llava import LlavaAdapter
from students.options import DistilOptions
from students.recipe import Variant, parse
from students.vision.pictures import pixel_table

TINY = DistilOptions(steps=5, rows=2, turns=3, warmup=1, betas_every=2, flush_every=3)  # the fixture's own
LARGE = TINY.model_copy(update={"rows": 4})
SPLIT = TINY.model_copy(update={"rows": 4, "micro_rows": 1})


def dynamics(out):
    return [json.loads(line) for line in (out / "dynamics.jsonl").read_text().splitlines()]


def weights(out):
    return dict(checkpoint.tensors(out / "student" / "model.safetensors"))


@pytest.mark.parametrize(
    "recipe",
    [
        "ce",
        "taid",
        "ctkd",
        "ce+fkl+fd@task",
        "ce+fkl@instance",
        "ce+fkl@analytic",
        "ce+fkl+rkl@uwo",
        "ce+fkl@gls",
        "ce+fkl@famo",
        "ce+fkl@gradnorm",
        "ce+fkl@dwa",
        "ce+fkl@rlw",
        "ce+fkl@manual",
    ],
)
def test_micro_batches_give_the_same_student(train, recipe):
    """One row at a time or four at once: only rounding differs, weightings that read batch statistics included."""
    whole, split = train(recipe, "whole", options=LARGE), train(recipe, "split", options=SPLIT)
    for one, other in zip(dynamics(whole), dynamics(split), strict=True):
        for field in ("loss", "weight", "weighted"):
            assert other[field] == pytest.approx(one[field], rel=1e-4, abs=1e-5)
        assert other["total"] == pytest.approx(one["total"], rel=1e-4, abs=1e-5)
        assert (one["samples"], one["tokens"]) == (other["samples"], other["tokens"])
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(split)[name], value, rtol=1e-3, atol=1e-4)


def test_a_micro_batch_dependent_weighting_says_so(train):
    recipe = "ce+fkl@released_instance"
    whole, split = train(recipe, "whole", options=LARGE), train(recipe, "split", options=SPLIT)
    assert not weightings.build("released_instance", channels=("ce", "fkl"), feature_dim=4).additive
    assert dynamics(whole)[-1]["loss"]["ce"] != pytest.approx(dynamics(split)[-1]["loss"]["ce"], rel=1e-7)


@pytest.mark.parametrize("recipe", ["fd", "align_kd@fixed@k2", "llava_kd", "ce+fd@task", "ce+fkl+llava_kd@instance"])
def test_energies_on_features_train_end_to_end(train, recipe):
    variant = Variant(energies={"align_kd": {"k": 2}}) if "align_kd" in recipe else None
    out = train(recipe, options=TINY.model_copy(update={"steps": 8, "rows": 4, "lr": 0.01}), variant=variant)
    lines = dynamics(out)
    channel = next(c for c in ("fd", "align_kd", "llava_kd") if c in recipe)
    if "ce" not in recipe:  # beside the labels it may well rise over eight steps
        assert lines[-1]["loss"][channel] < lines[0]["loss"][channel]
    stored = out / "energies.safetensors"
    assert stored.is_file() == bool(
        list(
            energies.build(
                channel, widths={t: (16, 32) if t != "attention" else (2, 2) for t in ("vision", "attention", "vision_logits")}
            ).parameters()
        )
    )
    assert not any(name.startswith("energies") for name in weights(out))


def test_samples_without_an_image_have_no_vision_channel(train, data):
    out = train("ce+fd@task", options=TINY.model_copy(update={"rows": 5, "betas_every": 1}))
    betas = pd.read_parquet(out / "betas.parquet")
    pictured = {s.id for s in data if s.image is not None}
    assert set(betas["id"]) <= pictured
    line = dynamics(out)[0]
    first = betas[betas["step"] == 1]
    assert len(first) < line["samples"]
    assert line["loss"]["fd"] == pytest.approx(first["energy"].mean(), rel=1e-5)
    assert line["weighted"]["fd"] == pytest.approx((first["energy"] * first["beta"]).sum() / line["samples"], rel=1e-5)


@pytest.mark.parametrize("recipe", ["taid", "ctkd"])
def test_stateful_energies_are_saved_beside_the_student(train, recipe):
    out = train(recipe)
    saved = dict(checkpoint.tensors(out / "energies.safetensors"))
    fresh = energies.build(recipe).state_dict()
    assert {name.removeprefix(f"{recipe}.") for name in saved} == set(fresh)
    assert any(not torch.equal(saved[f"{recipe}.{name}"], value) for name, value in fresh.items())


def test_labels_are_shifted_by_exactly_one(folders, data, encoded):
    """The loss of each answer token is read off the position before it: off by one in either direction is another number."""
    adapter = LlavaAdapter.load(folders / "base")
    batch = collate(encoded, [[4]], pixel_table(adapter, data))
    with torch.no_grad():
        hidden = adapter.hidden(batch)
        logits = adapter.head(adapter.supervised(hidden, batch))
        full = adapter.head(hidden[0]).log_softmax(-1)
    loss = sample_mean(label_nll(logits, batch.labels), batch.sample, 1).item()
    answer, start = encoded.answers[4], len(encoded.prompts[4])

    def by_hand(shift):
        return -sum(full[start + k - 1 + shift, token].item() for k, token in enumerate(answer)) / len(answer)

    assert len(answer) > 1
    assert loss == pytest.approx(by_hand(0), abs=1e-5)
    assert abs(loss - by_hand(-1)) > 1e-3
    ahead = -sum(full[min(start + k, len(full) - 1), token].item() for k, token in enumerate(answer)) / len(answer)
    assert abs(loss - ahead) > 1e-3


def test_a_padded_head_changes_no_energy_and_is_pushed_down_by_ce():
    generator = torch.Generator().manual_seed(0)
    real, teacher = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    padded = torch.cat([real, torch.full((5, 3), 9.0)], 1).requires_grad_()
    labels, sample = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 0, 1, 1, 1])
    both = Losses(parse("ce+fkl+mse_logits"), Variant(), {}, 7)
    found = both(padded, labels, sample, 2, teacher)
    alone = energies.build("mse_logits")(TokenBatch(real, teacher, labels, sample))
    torch.testing.assert_close(found.by_channel["mse_logits"], sample_mean(alone, sample, 2))
    (gradient,) = torch.autograd.grad(found.by_channel["fkl"].sum(), padded, retain_graph=True)
    assert gradient[:, 7:].abs().max() == 0
    (gradient,) = torch.autograd.grad(found.by_channel["ce"].sum(), padded)
    assert (gradient[:, 7:] > 0).all()


def test_a_stateful_energy_sees_every_step_once(train, monkeypatch):
    seen = []
    factory = type(energies.build("taid"))
    plain = factory.on_optimiser_step

    def spy(self, step, total):
        seen.append((step, total))
        plain(self, step, total)

    monkeypatch.setattr(factory, "on_optimiser_step", spy)
    train("ce+taid@famo", options=SPLIT)  # several micro-batches, and a second forward pass
    assert seen == [(k, 5) for k in range(1, 6)]


def test_weightings_get_the_losses_they_ask_for(train, monkeypatch):
    calls = []
    factory = type(weightings.build("famo", channels=("ce", "fkl")))
    for hook in ("on_optimiser_step", "after_step"):
        plain = getattr(factory, hook)

        def spy(self, *given, _plain=plain, _hook=hook):
            table = given[-1]
            calls.append((_hook, given[0] if len(given) > 1 else None, {c: v.mean().item() for c, v in table.items()}))
            return _plain(self, *given)

        monkeypatch.setattr(factory, hook, spy)
    lines = dynamics(train("ce+fkl@famo", options=SPLIT))
    after = [table for hook, _, table in calls if hook == "after_step"]
    assert len(after) == 5
    for line, table in zip(lines, after, strict=True):
        assert table != pytest.approx(line["loss"], rel=1e-6)  # the same batch, one step later
    assert after[0] == pytest.approx(lines[0]["loss"], rel=0.2)


def test_the_released_multipliers_are_options(train):
    out = train("ce+fkl@task@fast", variant=Variant(weighting={"lr_multiple": 1000.0}))
    assert [line["weighting_lr"] for line in dynamics(out)] == [pytest.approx(TINY.lr * 1000)] * 5


def test_scalars_are_entropy_and_top_probability():
    logits = torch.stack([torch.zeros(4), torch.tensor([0.0, -math.inf, -math.inf, -math.inf])])
    found = features.scalars(logits, torch.tensor([0, 1]), 2)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.25], [0.0, 1.0]]))


@pytest.mark.parametrize("name", ["student_prompt", "teacher_prompt", "teacher_vision", "scalars", "student_scalars"])
def test_a_gate_can_read_every_feature(train, name):
    out = train("ce+fkl@instance@v", variant=Variant(weighting={"features": name}))
    facts = json.loads((out / "weighting.json").read_text())
    assert facts["needs"] == [name]
    assert facts["feature_dim"] == {"student_prompt": 16, "teacher_prompt": 32, "teacher_vision": 32}.get(
        name, 4 if name == "scalars" else 2
    )


def test_features_of_a_teacher_that_mixes_its_answers_are_refused(train, make_data, signal):
    blind = make_data(blind=(0, 3))
    with pytest.raises(UserError, match="take energies on logits"):
        train("fd", data=blind, signal=replace(signal, blind_teacher="shuffled, 6 images, seed 0"))


def test_the_planted_truth_is_refused_where_nothing_is_planted(train):
    with pytest.raises(UserError, match="planted"):
        train("ce+fkl@oracle")


def test_an_energy_that_is_not_zero_at_a_match_is_refused_by_name(train):
    with pytest.raises(UserError, match="'beta_task' cannot weigh 'soft_ce': it is not zero at a match"):
        train("ce+soft_ce@task")
    assert dynamics(train("ce+soft_ce@released_task"))
