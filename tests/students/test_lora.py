"""LoRA students: merged and plain when saved, with the adapter beside them; the language model's own weights stay."""

import json

import pytest
import torch
from memory_corpus import MIXED, MemoryCorpus
from twin_families import twin
from twins import mobilevlm_twin

from harness.base import UserError
from students import checkpoint, lora, models
from students.distil import StreamInputs, distil
from students.options import DistilOptions, Lora
from students.recipe import parse

LORA = Lora(rank=2, alpha=6, dropout=0.1)
OPTIONS = DistilOptions(steps=2, rows=3, optimiser="adamw", lr=2e-2, warmup=0, flush_every=1, lora=LORA)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    where = tmp_path_factory.mktemp("lora")
    return {
        "llava_qwen": twin("llava_qwen", where / "llava", "student"),
        "mobilevlm": mobilevlm_twin(where / "mobilevlm", "student"),
        "qwen2_5_vl": twin("qwen2_5_vl", where / "qwen", "student"),
    }


def train(base, out, options=OPTIONS, recipe="ce"):
    distil(parse(recipe), options, StreamInputs(base, MemoryCorpus([row for row in MIXED if len(row[0]) < 2])), 0, out, print)
    return out


@pytest.mark.parametrize("family", ["llava_qwen", "mobilevlm", "qwen2_5_vl"])
def test_the_saved_student_is_its_base_plus_the_product(bases, tmp_path, family):
    out = train(bases[family], tmp_path / "out")
    base, student = models.load(bases[family]), models.load(out / "student")
    before, after = base.model.state_dict(), student.model.state_dict()
    assert set(before) == set(after)  # plain
    matrices = dict(checkpoint.tensors(out / "adapter" / "adapter_model.safetensors"))
    targets = base.lora_targets
    assert len(matrices) == 2 * len(targets) > 0
    for name in targets:
        a, b = (matrices[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        assert b.abs().max() > 0
        torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + 3 * (b @ a), rtol=1e-4, atol=1e-5)
    projector = {id(p) for p in base.projector.parameters()}
    for name, parameter in base.model.named_parameters():
        if name.removesuffix(".weight") not in targets:
            assert torch.equal(parameter, after[name]) == (id(parameter) not in projector), name
    facts = json.loads((out / "training.json").read_text())
    assert facts["learned"]["parameters"] == sum(m.numel() for m in matrices.values()) + sum(
        p.numel() for p in base.projector.parameters()
    )


def test_the_adapter_is_pefts(bases, tmp_path):
    """peft itself puts the adapter on the base, and the language model then says what the student's says."""
    from peft import PeftModel

    only = OPTIONS.model_copy(update={"learn": ("language",)})
    out = train(bases["llava_qwen"], tmp_path / "out", only)
    base, student = models.load(bases["llava_qwen"]), models.load(out / "student")
    ids = torch.randint(0, 300, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = base.model(input_ids=ids).logits
        both = PeftModel.from_pretrained(base.model, out / "adapter").eval()(input_ids=ids).logits
        expected = student.model(input_ids=ids).logits
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-4)
    assert (plain - expected).abs().max() > 1e-2


def test_only_the_named_layers_get_matrices(bases, tmp_path):
    some = OPTIONS.model_copy(update={"lora": LORA.model_copy(update={"targets": ("q_proj",)}), "steps": 1})
    out = train(bases["mobilevlm"], tmp_path / "out", some)
    assert {
        name.split(".lora_")[0].rpartition(".")[2]
        for name, _ in checkpoint.tensors(out / "adapter" / "adapter_model.safetensors")
    } == {"q_proj"}
    adapter = models.load(bases["mobilevlm"])
    with pytest.raises(UserError, match="lora names the target 'query'; linear layers of this mobilevlm: q_proj, k_proj"):
        lora.targets(adapter, ("query",))


def test_one_seed_gives_one_start(bases, tmp_path):
    def start(seed):
        adapter = models.load(bases["mobilevlm"])
        before = torch.get_rng_state()
        lora.attach(adapter, LORA, seed)
        assert torch.equal(before, torch.get_rng_state())
        return checkpoint.digest_tensors((n, p) for n, p in adapter.model.named_parameters() if "lora_A" in n)

    assert start(0) == start(0) != start(1)


def test_over_a_frozen_half_precision_model_the_matrices_are_float32(bases, tmp_path):
    half = OPTIONS.model_copy(update={"precision": "bf16", "frozen_dtype": "bfloat16", "gradient_checkpointing": True})
    out = train(bases["mobilevlm"], tmp_path / "out", half)
    assert {t.dtype for _, t in checkpoint.tensors(out / "adapter" / "adapter_model.safetensors")} == {torch.float32}
    before, after = models.load(bases["mobilevlm"]).model.state_dict(), models.load(out / "student").model.state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    assert 0 < torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 2  # of the base's own values
    assert torch.equal(after["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
