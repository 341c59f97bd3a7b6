"""Distillation on conversations with a live teacher: pairs of MobileVLM and of other families, rows of every kind."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from killing import identical, killed
from memory_corpus import MIXED, MemoryCorpus, asked
from tiny_corpus import indexed
from twin_families import FAMILIES, LLAVA_TEMPLATE, twin
from twins import mobilevlm_twin

from harness.base import UserError
from students import checkpoint, energies, models, stored, taps, weightings
from students.batch import TokenBatch
from students.data.conversations import UnreadableImage
from students.distil import StreamInputs, distil
from students.energies.fd import Energy as FD
from students.feed_stream import StreamFeed
from students.options import DistilOptions
from students.recipe import Variant, parse
from students.training import Training
from students.voice_live import StreamVoice

OPTIONS = DistilOptions(
    steps=4, rows=4, micro_rows=2, optimiser="adamw", lr=2e-3, warmup=0, betas_every=1, flush_every=2, max_length=700
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    where = tmp_path_factory.mktemp("mobilevlm")
    return tuple(mobilevlm_twin(where / size, size, seed=k) for k, size in enumerate(("student", "teacher")))


@pytest.fixture(scope="module")
def mixed(pair):
    return StreamInputs(pair[0], MemoryCorpus(MIXED), pair[1])


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Checkpoints of other families, made when they are asked for: ``others(family, size)``."""
    where, made = tmp_path_factory.mktemp("families"), {}

    def get(family, size="student"):
        if (family, size) not in made:
            kind, rows = ("teacher", 512) if size == "padded" else (size, None)
            made[family, size] = twin(family, where / f"{family}-{size}", kind, seed=len(made), vocabulary=rows)
        return made[family, size]

    return get


@pytest.fixture
def run(tmp_path):
    def go(recipe, inputs, name=None, options=OPTIONS, variant=None, seed=0):
        out = tmp_path / (name or recipe)
        distil(parse(recipe), options, inputs, seed, out, lambda *_: None, variant=variant)
        return out

    return go


def dynamics(out):
    return [json.loads(line) for line in (out / "dynamics.jsonl").read_text().splitlines()]


def record(out):
    return json.loads((out / "training.json").read_text())


# ---- the MobileVLM pair ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "variant"),
    [
        ("ce+fd+fkl", None),
        ("ce+align_kd", Variant(energies={"align_kd": {"k": 5}})),
        ("ce+llava_kd@task", None),
        ("ce+fd+fkl@instance", Variant(weighting={"features": ["teacher_prompt", "teacher_vision", "scalars"]})),
    ],
)
def test_every_channel_learns_on_rows_of_every_kind(run, mixed, pair, recipe, variant):
    out = run(recipe, mixed, variant=variant)
    lines = dynamics(out)
    for channel in parse(recipe).energies:
        first, last = (np.mean([line["loss"][channel] for line in part]) for part in (lines[:2], lines[-2:]))
        assert last < first  # both are whole epochs
    before, after = models.load(pair[0]), models.load(out / "student")
    assert checkpoint.digest_tensors(before.tower.state_dict().items()) == checkpoint.digest_tensors(
        after.tower.state_dict().items()
    )
    assert set(before.model.state_dict()) == set(after.model.state_dict())  # no adapter inside
    for name, value in before.model.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[name]) == ("vision_tower" in name), name
    if "fd" in recipe or "align_kd" in recipe:
        torch.manual_seed(0)
        saved = dict(checkpoint.tensors(out / "energies.safetensors"))
        shape = {"vision": (32, 48)}
        name = next(name for name in saved if name.endswith("project.weight"))
        assert saved[name].shape == shape["vision"]
        assert not torch.equal(saved[name], FD(shape).project.weight)  # it is in the optimiser


def test_rows_are_counted(run, mixed):
    facts = record(run("ce+fd", mixed, options=OPTIONS.model_copy(update={"steps": 2})))  # one epoch
    assert {k: facts[k] for k in ("samples", "rows", "images", "text_only_rows", "cut_rows", "replaced_rows")} == {
        "samples": 8, "rows": 8, "images": 9, "text_only_rows": 2, "cut_rows": 0, "replaced_rows": 0,
    }  # fmt: skip


def test_the_teacher_says_what_it_says_about_each_row_alone(pair, mixed):
    """In batches with padding, and through an alignment by tokens: the logits of a plain pass over one conversation."""
    student, teacher = (models.load(folder) for folder in pair)
    feed = StreamFeed(mixed.corpus, OPTIONS, 0, student, teacher)
    voice = StreamVoice(teacher, CPU, torch.float32)
    members = [[2], [1], [6], [5]]
    part = feed.part(members)
    said = voice.hear(part, part.batch, {}, record=True, states=True)
    feed.close()
    for place, (index,) in enumerate(members):
        conversation = mixed.corpus[index]
        row = teacher.row(conversation, [mixed.corpus.picture(key) for key in conversation.images])
        batch = teacher.collate([row], (index,))
        with torch.no_grad():
            hidden, found = teacher.observe(batch, {"vision"})
            logits = teacher.head(hidden[0])[np.flatnonzero(row.supervised) - 1][:, : len(teacher.tokens())]
        mine = part.batch.sample == place
        assert torch.equal(part.batch.labels[mine], torch.from_numpy(row.ids[row.supervised]))
        torch.testing.assert_close(said.logits[mine], logits, rtol=1e-4, atol=1e-4)
        p = logits.softmax(-1)
        torch.testing.assert_close(said.entropy[place], -(p * p.log()).sum(-1).mean(), rtol=1e-4, atol=1e-5)
        assert bool(said.correct[place]) == torch.equal(logits.argmax(-1), part.batch.labels[mine])
        torch.testing.assert_close(said.prompt[place], hidden[0, row.prompt - 1], rtol=1e-4, atol=1e-4)
        assert bool(said.seen[place]) == bool(conversation.images)
        expected = found["vision"].mean((0, 1)) if conversation.images else torch.zeros(teacher.hidden_size)
        torch.testing.assert_close(said.vision[place], expected, rtol=1e-4, atol=1e-5)


def test_features_of_several_images_are_compared_image_by_image(pair, mixed):
    student, teacher = (models.load(folder) for folder in pair)
    feed = StreamFeed(mixed.corpus, OPTIONS, 0, student, teacher)
    part = feed.part([[6], [1], [2], [0]])
    feed.close()
    with torch.no_grad():
        _, mine = student.observe(part.batch, taps.NAMES)
    said = StreamVoice(teacher, CPU, torch.float32).hear(part, part.batch, mine, record=False, states=False)
    torch.manual_seed(0)
    energy = FD(taps.widths({"vision"}, student, teacher))
    logits = torch.zeros_like(said.logits)
    found = energy(TokenBatch(logits, logits, part.batch.labels, part.batch.sample, said.taps))
    assert said.taps["vision"].student.shape == (3, 3 * 144, 32)
    assert said.taps["vision"].mask.sum(1).tolist() == [432, 288, 144]
    for place, index in enumerate((6, 1, 2, 0)):
        images = mixed.corpus[index].images
        if not images:
            assert found[place] == 0
            continue
        with torch.no_grad():
            pictures = [mixed.corpus.picture(key) for key in images]
            shown = [adapter.vision(adapter.pixels(pictures)) for adapter in (student, teacher)]
            expected = (energy.project(shown[1]) - shown[0]).square().mean()
        torch.testing.assert_close(found[place], expected, rtol=1e-4, atol=1e-6)


@pytest.fixture
def small(others):
    """A pair whose images take 16 tokens."""
    return StreamInputs(others("llava_qwen"), MemoryCorpus(MIXED), others("llava_qwen", "teacher"))


def test_micro_batches_and_reading_ahead_change_nothing_but_rounding(run, small):
    whole, split = (run("ce+fd+fkl@instance", small, str(n), OPTIONS.model_copy(update={"micro_rows": n})) for n in (4, 1))
    for one, other in zip(dynamics(whole), dynamics(split), strict=True):
        for field in ("loss", "weight", "weighted"):
            assert other[field] == pytest.approx(one[field], rel=1e-3, abs=1e-4)


def test_logits_in_parts_change_nothing_but_rounding(run, small, monkeypatch):
    """The student's in chunks, a live teacher's made from its states for each of them."""
    whole = dynamics(run("ce+fkl@task", small, "whole"))
    monkeypatch.setattr(stored, "LIMIT", 1500)
    for line, other in zip(whole, dynamics(run("ce+fkl@task", small, "parts")), strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert line["teacher_entropy"] == pytest.approx(other["teacher_entropy"], rel=1e-6)


def test_all_recipes_see_the_same_rows_and_another_seed_others(run, small):
    def seen(out):
        frame = pd.read_parquet(out / "betas.parquet")
        return list(zip(frame["step"], frame["id"], strict=True))

    first = seen(run("ce+fkl", small))
    assert first == seen(run("rkl", small))
    assert first != seen(run("ce+fkl", small, "other", seed=1))


def test_an_indexed_corpus_streams(run, pair, tmp_path):
    corpus = indexed(tmp_path / "corpus", rows=12, seed=3, text_only=0.3)
    options = OPTIONS.model_copy(update={"steps": None, "epochs": 1.0, "grouping": "modality_length", "template": "v1"})
    facts = record(run("ce+fd", StreamInputs(pair[0], corpus, pair[1]), options=options))
    assert (facts["steps"], facts["rows"], facts["text_only_rows"]) == (3, 12, int((corpus.shows == 0).sum()))
    assert facts["text_only_rows"] > 0


# ---- limits and bad input --------------------------------------------------------------------------------------------------


LONG = " ".join(["The second one is larger than the first one ."] * 8)


def test_rows_are_cut_and_counted_and_the_teacher_follows(run, pair):
    rows = [(("1",), (asked("What ?"), "red"), ("Why ?", LONG)), ((), (LONG, LONG)), *MIXED[:2]]
    corpus = MemoryCorpus(rows)
    adapter = models.load(pair[0])
    limit = 330
    cut = [
        adapter.row(c, [corpus.picture(k) for k in c.images], limit).cut
        for c in (corpus[k] for k in range(4))
    ]  # fmt: skip
    assert cut[0] > 0 < cut[1] and cut[2:] == [0, 0]
    options = OPTIONS.model_copy(update={"steps": 3, "max_length": limit})
    facts = record(run("ce+align_kd+fkl", StreamInputs(pair[0], corpus, pair[1]), options=options))
    assert (facts["cut_rows"], facts["cut_tokens"], facts["rows"]) == (6, 3 * sum(cut), 12)
    assert "6 of 12 rows lost" in facts["note"]


def test_rows_that_lose_everything_stop_the_training_or_are_replaced(run, pair):
    corpus = MemoryCorpus([((), (LONG, "red")), ((), ("Why ?", "It rains .")), *MIXED])
    inputs = StreamInputs(pair[0], corpus, pair[1])
    short = OPTIONS.model_copy(update={"max_length": 200, "rows": 10, "steps": 1})
    with pytest.raises(UserError, match=r"row 'row\d' has .* tokens before its first reply"):
        run("ce", inputs, "stop", short)
    facts = record(run("ce+fkl", StreamInputs(pair[0], MemoryCorpus([*corpus_rows(corpus)]), pair[1]), "replace",
                       short.model_copy(update={"rows": 4, "overlong": "replace"})))  # fmt: skip
    assert facts["replaced_rows"] == 1
    assert facts["replaced"] == ["row0"]


def corpus_rows(corpus):
    """The first two rows of text and two more."""
    texts = [row for row in corpus.rows if not row.images]
    return [((), *((t.user, t.assistant) for t in row.turns)) for row in texts]


def test_a_missing_teacher_or_template_is_named(run, pair, mixed, others):
    with pytest.raises(UserError, match=r"recipe 'ce\+fkl@fixed' needs a teacher checkpoint for: fkl"):
        run("ce+fkl", StreamInputs(pair[0], mixed.corpus))
    assert dynamics(run("ce", StreamInputs(pair[0], mixed.corpus)))[0]["teacher_entropy"] is None
    with pytest.raises(UserError, match="template is 'v1', and a llava has its processor's own"):
        run("ce", StreamInputs(others("llava"), mixed.corpus), options=OPTIONS.model_copy(update={"template": "v1"}))
    with pytest.raises(UserError, match="unknown template 'v2'"):
        run("ce", mixed, options=OPTIONS.model_copy(update={"template": "v2"}))


def test_an_unreadable_image_stops_the_training_by_name(run, pair):
    class Broken(MemoryCorpus):
        def picture(self, key):
            if key == "5":
                raise UnreadableImage(key, "5.jpg: truncated")
            return super().picture(key)

    with pytest.raises(UserError, match=r"image '5': 5\.jpg: truncated"):
        run("ce", StreamInputs(pair[0], Broken(MIXED)))


# ---- other families --------------------------------------------------------------------------------------------------------


SINGLE = [row for row in MIXED if len(row[0]) < 2]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_familys_training_goes_on_after_a_kill(others, tmp_path, family):
    inputs = StreamInputs(others(family), MemoryCorpus(SINGLE), others(family, "teacher"))
    options = OPTIONS.model_copy(update={"save_every": 1, "steps": 2, "rows": 2, "micro_rows": None, "flush_every": 1})
    killed("ce+fkl@instance", options, inputs, tmp_path / "killed", at=1)
    for name in ("killed", "whole"):
        distil(parse("ce+fkl@instance"), options, inputs, 0, tmp_path / name, lambda *_: None)
    identical(tmp_path / "killed", tmp_path / "whole")


EVERY = ["+".join(["ce", *energies.names()])]
EVERY += [f"ce+fkl+fd@{name}" for name in weightings.names() if name != "oracle"]


@pytest.mark.parametrize("recipe", EVERY)
def test_every_energy_and_every_weighting_takes_streams(run, others, recipe):
    """Beside each other: rows with none, one and several images; two micro-batches of unequal size; a padded teacher's head."""
    variant = Variant(energies={"align_kd": {"k": 3}}) if "align_kd" in recipe else None
    inputs = StreamInputs(others("llava_qwen"), MemoryCorpus(MIXED), others("llava_qwen", "padded"))
    options = OPTIONS.model_copy(update={"steps": 1, "rows": 8, "micro_rows": 5})
    (line,) = dynamics(run(recipe, inputs, "out", options, variant))
    assert all(np.isfinite(line["loss"][channel]) for channel in parse(recipe).channels)
    assert all(line["loss"][channel] > 0 for channel in parse(recipe).channels if channel not in ("taid", "ctkd"))


def test_the_planted_truth_is_unknown_of_a_stream(run, small):
    with pytest.raises(UserError, match="planted truth"):
        run("ce+fkl@oracle", small)


@pytest.mark.parametrize("recipe", ["ce+fd+fkl", "ce+align_kd@fixed@k", "ce+llava_kd"])
def test_the_papers_other_pair_has_every_channel(run, others, recipe):
    """LLaVA with Qwen2 inside, of two sizes (Table 5)."""
    variant = Variant(energies={"align_kd": {"k": 3}}) if "align_kd" in recipe else None
    inputs = StreamInputs(others("llava_qwen"), MemoryCorpus(MIXED), others("llava_qwen", "teacher"))
    lines = dynamics(run(recipe, inputs, variant=variant))
    for channel in parse(recipe).energies:
        assert np.mean([line["loss"][channel] for line in lines[-2:]]) < np.mean([line["loss"][channel] for line in lines[:2]])


def test_a_teacher_of_another_family_with_the_same_tokenizer_works(run, others):
    inputs = StreamInputs(others("llava_qwen"), MemoryCorpus(SINGLE), others("qwen2_5_vl", "teacher"))
    lines = dynamics(run("ce+fkl@instance", inputs))
    assert lines[0]["teacher_entropy"] > 0
    with pytest.raises(
        UserError, match=r"16 tokens for the student \(llava\) and a variable number of tokens for the teacher \(qwen2_5_vl\)"
    ):
        run("ce+fd", inputs)


def test_another_tokenizer_is_one_error(run, others, pair):
    with pytest.raises(UserError, match="tokenizers"):
        run("ce+fkl", StreamInputs(pair[0], MemoryCorpus(SINGLE), others("llava_qwen", "teacher")))


def test_replies_that_are_split_otherwise_name_the_sample_and_the_tokens(run, others, tmp_path):
    """A template with a space before the reply makes another first token of it."""
    folder = twin("llava_qwen", tmp_path / "spaced", "teacher")
    (folder / "chat_template.jinja").write_text(LLAVA_TEMPLATE.replace("'ASSISTANT:'", "'ASSISTANT: '"))
    with pytest.raises(UserError) as error:
        run("ce+fkl", StreamInputs(others("llava_qwen"), MemoryCorpus(SINGLE), folder))
    message = str(error.value)
    assert "sample 'row" in message
    assert "student and teacher learn different tokens from supervised token" in message
    assert "\n" not in message


def test_nothing_is_read_from_the_device_between_flushes(mixed, tmp_path, monkeypatch):
    """Items and copies to numpy would make a GPU wait. What transformers and torch read themselves is theirs."""
    training = Training(parse("ce+fd+fkl@instance"), OPTIONS, mixed, 0, tmp_path, "cpu", Variant())
    training.recorder.begin()
    part = training.feed.part
    monkeypatch.setattr(training.feed, "part", lambda members: made[tuple(map(tuple, members))])
    made = {}
    for step in (1, 2, 3):
        for rows in training.micro(training.feed.members(step)):
            made[tuple(map(tuple, rows))] = part(rows)
    training.step(1, training.feed.members(1))  # optimisers make their state
    reads = []

    def spied(plain, name):
        def read(self, *given, **named):
            where = sys._getframe(1).f_code.co_filename
            reads.extend([(name, where)] if "/students/" in where else [])
            return plain(self, *given, **named)

        return read

    for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, spied(getattr(torch.Tensor, name), name))
    training.step(3, training.feed.members(3))
    monkeypatch.undo()
    training.close()
    assert reads == []


def test_labels_that_the_teacher_does_not_know_are_refused(mixed, tmp_path):
    """Special tokens at the end of a vocabulary may differ; a reply that holds one has nothing to compare there."""
    training = Training(parse("ce+fkl"), OPTIONS, mixed, 0, tmp_path, "cpu", Variant())
    count, names = training.feed.shared
    assert count <= len(names)
    first = training.micro(training.feed.members(1))[0]
    end = int(training.feed.part(first).batch.labels.max())
    training.feed.shared = (end, names)
    with pytest.raises(UserError, match="which student and teacher do not share"):
        training.feed.part(first)
    training.close()
