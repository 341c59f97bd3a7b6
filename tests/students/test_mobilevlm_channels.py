"""Channels that read features, on the MobileVLM pair: widths and heads differ, adapters learn and stay outside the student."""

import json

import pytest
import torch
from memory_corpus import MIXED, MemoryCorpus, asked
from safetensors.torch import load_file
from tiny_corpus import indexed
from twins import mobilevlm_twin

from students import models, taps
from students.distil import StreamInputs, distil
from students.feed_stream import StreamFeed
from students.options import DistilOptions, Lora
from students.recipe import parse
from students.voice_live import StreamVoice

OPTIONS = DistilOptions(
    steps=2, rows=4, micro_rows=2, optimiser="adamw", lr=1e-3, warmup_ratio=0.5, betas_every=1, flush_every=1, max_length=500
)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    where = tmp_path_factory.mktemp("channels")
    student, teacher = (
        mobilevlm_twin(where / size, size, layout, seed=k)
        for k, (size, layout) in enumerate((("student", "bin"), ("teacher", "safetensors")))
    )
    corpus = indexed(where / "mixed", rows=12, seed=3, text_only=0.25)
    return StreamInputs(student, corpus, teacher)


def trained(recipe, given, out, **changes):
    distil(parse(recipe), OPTIONS.model_copy(update=changes), given, 0, out, lambda *_: None)
    return out


def weights(folder):
    """Weights of a folder in the published layout, without what is computed."""
    files = sorted(folder.glob("*.safetensors"))
    found = load_file(files[0]) if files else torch.load(folder / "pytorch_model.bin", weights_only=True)
    return {name: v for name, v in found.items() if not name.endswith(("inv_freq", "position_ids"))}


@pytest.mark.parametrize("channel", ["fd", "align_kd", "llava_kd"])
def test_feature_channels_run_on_different_widths_and_heads(given, tmp_path, channel):
    out = trained(f"ce+fkl+{channel}@fixed", given, tmp_path / "out")
    lines = [json.loads(line) for line in (out / "dynamics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["loss"][channel] > 1e-4 for line in lines)
    start, end = weights(given.base), weights(out / "student")
    assert end.keys() == start.keys(), "adapters are beside the student, under published names nothing else is"
    moved = {name for name in start if not torch.equal(start[name], end[name].to(start[name].dtype))}
    assert not any("vision_tower" in name for name in moved)
    assert {"model.mm_projector.mlp.mlp.0.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"} <= moved
    adapters = load_file(out / "energies.safetensors") if (out / "energies.safetensors").is_file() else {}
    if channel in ("fd", "align_kd"):
        assert any(48 in value.shape for value in adapters.values()), "a learned adapter to the teacher's width"
    found = models.load(out / "student")
    assert found.family == "mobilevlm"


def test_adapters_learn(given, tmp_path):
    one, two = (trained("ce+fd@fixed", given, tmp_path / str(steps), steps=steps) for steps in (1, 2))
    before, after = (load_file(out / "energies.safetensors") for out in (one, two))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_captions_train_the_projector_alone_in_the_format_plain(given, tmp_path):
    captions = indexed(tmp_path / "captions", rows=12, seed=4, text_only=0.0)
    only = StreamInputs(given.base, _Captions(captions), given.teacher)
    out = trained("ce+fkl@fixed", only, tmp_path / "out", template="plain", learn=("projector",))
    start, end = weights(given.base), weights(out / "student")
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved and all(name.startswith("model.mm_projector.") for name in moved)


class _Captions:
    """The first turn of every row, which is all that captions have."""

    def __init__(self, corpus):
        self.corpus = corpus

    def __getattr__(self, name):
        return getattr(self.corpus, name)

    def __len__(self):
        return len(self.corpus)

    def __getitem__(self, index):
        from dataclasses import replace

        row = self.corpus[index]
        return replace(row, turns=row.turns[:1])


def test_lora_targets_the_language_model_and_merges_into_published_names(given, tmp_path):
    lora = Lora(rank=2, alpha=4, dropout=0.0, targets=("q_proj", "v_proj"))
    out = trained("ce+fkl@fixed", given, tmp_path / "out", lora=lora)
    start, end = weights(given.base), weights(out / "student")
    assert end.keys() == start.keys()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    language = {name for name in moved if not name.startswith("model.mm_projector.")}
    assert language == {f"model.layers.{k}.self_attn.{p}_proj.weight" for k in range(2) for p in "qv"}


def test_images_that_only_the_teacher_reads_are_compared_with_nothing(given):
    """A row that is cut before its second image, and one before its only image, beside whole rows of one and two images."""
    student, teacher = (models.load(folder) for folder in (given.base, given.teacher))
    long = " ".join(["The second one is larger than the first one ."] * 8)
    late = ((asked("What ?"), long), (asked("And now ?"), "red ."))
    corpus = MemoryCorpus([(("1", "2"), *late), (("3",), ("What ?", long * 3), late[1]), *MIXED[:1], MIXED[2]])

    def observe(members, limit):
        feed = StreamFeed(corpus, OPTIONS.model_copy(update={"max_length": limit}), 0, student, teacher)
        part = feed.part([[k] for k in members])
        feed.close()
        with torch.no_grad():
            _, mine = student.observe(part.batch, taps.NAMES)
        return part, StreamVoice(teacher, torch.device("cpu"), torch.float32).hear(
            part, part.batch, mine, record=False, states=False
        ).taps

    limit = 330
    part, found = observe((0, 1, 2), limit)
    assert (part.batch.pictures, part.hearing.batch.pictures) == ((1, 0, 1), (2, 1, 1))
    assert found["vision"].group.tolist() == [0, -1, 1]
    assert found["attention"].group.tolist() == [0, -1, 2]
    for name in ("vision", "vision_logits"):
        _, alone = observe((2,), limit)
        torch.testing.assert_close(found[name].teacher[1], alone[name].teacher[0], rtol=1e-4, atol=1e-5)
    assert found["attention"].student.shape[:-1] == found["attention"].teacher.shape[:-1]
    with torch.no_grad():
        expected = [teacher.vision(teacher.pixels([corpus.picture(key)]))[0] for key in "11"]
    torch.testing.assert_close(found["vision"].teacher, torch.stack(expected), rtol=1e-4, atol=1e-5)
