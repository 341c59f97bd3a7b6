"""What learns and what does not, at which rates, in which precision."""

import json
import math

import pydantic
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from harness.base import UserError
from students import checkpoint, recompute, shortage
from students.models.llava import LlavaAdapter
from students.optimise import Optimiser, fall
from students.options import DistilOptions, Lora
from students.training import Training

TINY = DistilOptions(steps=4, rows=4, turns=3, warmup=1, betas_every=2, flush_every=2, optimiser="adamw", lr=1e-2)


def weights(folder):
    return dict(checkpoint.tensors(folder / "model.safetensors"))


def part(name):
    return "tower" if "vision_tower" in name else "projector" if "projector" in name else "language"


@pytest.mark.parametrize("learn", [("projector",), ("language", "projector"), ("tower",), ("language", "tower", "projector")])
def test_exactly_the_named_parts_learn(train, folders, learn):
    out = train("ce+fkl", options=TINY.model_copy(update={"learn": learn}))
    before, after = weights(folders / "base"), weights(out / "student")
    changed = {part(name) for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == set(learn)
    facts = json.loads((out / "training.json").read_text())
    assert facts["learned"]["parameters"] == sum(
        v.numel() for n, v in before.items() if part(n) in learn and "lm_head" not in n
    )


def test_a_frozen_tensor_that_changes_is_an_error(train, monkeypatch, tmp_path):
    plain = Training.step

    def careless(self, number, members):
        plain(self, number, members)
        if number == 2:
            with torch.no_grad():
                next(self.adapter.tower.parameters()).view(-1)[0] += 1e-3

    monkeypatch.setattr(Training, "step", careless)
    with pytest.raises(RuntimeError, match=r"1 frozen tensor\(s\) changed in training: model\.vision_tower"):
        train("ce", options=TINY)
    assert not (tmp_path / "ce" / "student").exists()


def test_a_teacher_that_changes_is_an_error_too(train, monkeypatch):
    plain = Training.step

    def careless(self, number, members):
        plain(self, number, members)
        with torch.no_grad():
            self.voice.adapter.model.lm_head.weight[0, 0] += 1e-3

    monkeypatch.setattr(Training, "step", careless)
    with pytest.raises(RuntimeError, match="changed in training: teacher: "):
        train("ce+fd", options=TINY)


def test_the_frozen_digest_is_of_the_frozen_tensors(train):
    one, other = (
        json.loads((train(r, options=TINY) / "training.json").read_text()) for r in ("ce", "ce+fkl")
    )  # from the signal
    assert one["frozen"] == other["frozen"]
    more = json.loads(
        (train("ce", "p", options=TINY.model_copy(update={"learn": ("projector",)})) / "training.json").read_text()
    )
    assert more["frozen"]["tensors"] > one["frozen"]["tensors"]


def test_the_published_schedule_is_transformers_own():
    from transformers import get_cosine_schedule_with_warmup

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimiser, DistilOptions(steps=100, warmup_ratio=0.03).warmup_steps(100), 100)
    for done in range(100):
        assert fall("adamw", done, 100, 3) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-12)
        optimiser.step()
        schedule.step()


def test_the_embedded_suites_schedule_is_what_it_was():
    for done in (0, 5, 39, 100, 249):
        rise = min(1.0, (done + 1) / 40)
        assert fall("muon", done, 250, 40) == rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done / 250)))


def test_the_projector_has_its_own_rate_and_norms_do_not_decay(folders):
    adapter = LlavaAdapter.load(folders / "base")
    options = TINY.model_copy(update={"projector_lr": 0.5, "weight_decay": 0.1, "betas": (0.8, 0.9), "warmup": 0})
    (adamw,) = Optimiser.of(options, adapter, 4).parts
    projector = {id(p) for p in adapter.projector.parameters()}
    seen = 0
    for group in adamw.param_groups:
        assert group["betas"] == (0.8, 0.9)
        for parameter in group["params"]:
            seen += 1
            assert group["lr"] == (0.5 if id(parameter) in projector else 1e-2)
            assert group["weight_decay"] == (0.1 if parameter.ndim >= 2 else 0.0)
    assert seen == len(adapter.trainable())
    matrices = [
        p for part in Optimiser(adapter, lr=1, muon_lr=1, steps=1, warmup=0).parts[1:] for p in part.param_groups[0]["params"]
    ]
    assert len(matrices) == 7  # one block: four of attention, three of the MLP


@pytest.mark.parametrize("how", [True, "selective"])
def test_recomputed_activations_change_nothing_but_rounding(train, how):
    plain = train("ce+fkl+fd@instance", "plain", options=TINY)
    again = train("ce+fkl+fd@instance", "again", options=TINY.model_copy(update={"gradient_checkpointing": how}))
    for name, value in weights(plain / "student").items():
        torch.testing.assert_close(weights(again / "student")[name], value, rtol=1e-4, atol=1e-6)


class Count(TorchDispatchMode):
    """How often an operation runs."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.count = operation, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is self.operation
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("how", "silus", "attentions"), [(False, 1, 1), ("selective", 2, 1), (True, 2, 2)])
def test_what_is_recomputed(folders, how, silus, attentions):
    """All of a block, or all but its products and its attention."""
    adapter = LlavaAdapter.load(folders / "base")
    recompute.enable(adapter.model, how)
    adapter.model.train()
    given = {"input_ids": torch.tensor([[3, 4, 5, 6]]), "use_cache": False}
    kinds = torch.ops.aten.silu.default, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    found = []
    for kind in kinds:
        with Count(kind) as counted:
            adapter.model(**given).logits.sum().backward()
        found.append(counted.count)
    assert found == [silus, attentions]


def test_half_precision_keeps_float32_master_weights(train, folders, monkeypatch):
    seen, shape = {}, {}
    plain = Training.step

    def spy(self, number, members):
        plain(self, number, members)
        shape.update({name: p.ndim for name, p in self.adapter.model.named_parameters()})
        seen.update({name: p.dtype for name, p in self.adapter.model.named_parameters()})
        states = [s for part in self.optimiser.parts for s in part.state.values()]
        seen["optimiser"] = {v.dtype for s in states for v in s.values() if torch.is_tensor(v)}

    monkeypatch.setattr(Training, "step", spy)
    mixed = TINY.model_copy(update={"precision": "bf16", "frozen_dtype": "bfloat16", "lr": 1e-4})
    out = train("ce+fkl", options=mixed)
    assert seen.pop("optimiser") == {torch.float32}
    for name, dtype in seen.items():
        assert dtype == (torch.bfloat16 if part(name) == "tower" and shape[name] > 1 else torch.float32), name
    before, after, rounded = weights(folders / "base"), weights(out / "student"), False
    for name, value in before.items():
        assert after[name].dtype == torch.float32
        if part(name) == "tower":
            assert torch.equal(after[name], value)  # not the rounded copy
            rounded |= not torch.equal(value, value.bfloat16().float())
    assert rounded
    name = next(name for name in before if name.endswith("projector.linear_1.weight"))
    moved = (after[name] - before[name]).abs()
    assert 0 < moved.max() < 1e-3  # steps that bfloat16 weights would have rounded away


def test_epochs_are_whole_steps(train):
    out = train("ce", options=TINY.model_copy(update={"steps": None, "epochs": 2.0, "rows": 2}))
    assert len((out / "dynamics.jsonl").read_text().splitlines()) == 4  # four rows of at most three questions, two a step


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "steps or epochs"),
        ({"steps": 1, "epochs": 1}, "steps or epochs"),
        ({"steps": 1, "learn": ()}, "one or more of language"),
        ({"steps": 1, "learn": ("tower", "tower")}, "each once"),
        ({"steps": 1, "lora": {}}, "optimiser: adamw"),
        ({"steps": 1, "lora": {}, "optimiser": "adamw", "learn": ("projector",)}, "learn leaves out"),
        ({"steps": 1, "frozen_dtype": "bfloat16"}, "precision: bf16"),
        ({"steps": 1, "optimizer": "adamw"}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        DistilOptions(**given)


def test_what_was_recorded_before_later_options_keeps_its_digest():
    old = {"steps", "rows", "turns", "lr", "muon_lr", "weighting_lr", "warmup", "clip", "betas_every", "flush_every",
           "micro_rows", "precision"}  # fmt: skip
    assert set(DistilOptions(steps=1).model_dump(mode="json")) == old
    changed = DistilOptions(steps=1, optimiser="adamw", lora=Lora(rank=4), learn=("language",))
    assert DistilOptions.model_validate(changed.model_dump(mode="json")) == changed


# ---- memory ----------------------------------------------------------------------------------------------------------------


def cpu_shortage():
    torch.empty(2**50)


def gpu_shortage():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity")


@pytest.mark.parametrize("shortage_of", [cpu_shortage, gpu_shortage, lambda: bytearray(2**62)])
def test_too_little_memory_names_the_batch_and_the_settings(train, monkeypatch, shortage_of):
    plain = Training._detached

    def greedy(self, number, passed, parts):
        if number == 3:
            shortage_of()
        return plain(self, number, passed, parts)

    monkeypatch.setattr(Training, "_detached", greedy)
    with pytest.raises(UserError) as error:
        train("ce", options=TINY.model_copy(update={"micro_rows": 2}))
    message = str(error.value)
    assert "out of memory at step 3 with 2 rows at once, the longest of " in message
    for setting in ("micro_rows (now 2)", "gradient_checkpointing (now False)", "max_length (now None)", "lora (now None)"):
        assert setting in message
    assert "\n" not in message


def test_other_errors_are_not_taken_for_a_shortage(train, monkeypatch):
    def broken(self, number, passed, parts):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Training, "_detached", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train("ce", options=TINY)
    assert not shortage.is_shortage(RuntimeError("mat1 and mat2"))
