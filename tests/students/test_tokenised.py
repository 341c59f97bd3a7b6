"""Rows of a corpus as stored tokens and stored pictures: every row, every limit and every training as without them."""

import json
import shutil
from dataclasses import fields

import numpy as np
import pytest
import torch
from killing import identical, killed, lines
from memory_corpus import MIXED, MemoryCorpus, asked
from stored_features import stored
from tiny_corpus import indexed
from twin_families import FAMILIES, twin
from twins import mobilevlm_twin

from harness.base import UserError
from students import models
from students.data import decoded, images, tokenised
from students.data.decoded import Decoded
from students.data.tokenised import Tokenised
from students.distil import StreamInputs, distil
from students.options import DistilOptions
from students.recipe import parse
from students.teacher_signal import streams
from students.vision import keys
from students.vision.store import Features

LONG = " ".join(["The second one is larger than the first one ."] * 3)
ROWS = [*MIXED[:4], (("6", "7"), (asked("Which ?"), "the first"), (asked("And now ?"), LONG)), ((), (LONG, "yes"))]
OPTIONS = DistilOptions(
    steps=3, rows=2, optimiser="adamw", lr=2e-3, warmup=0, betas_every=1, flush_every=1, save_every=1, max_length=600
)  # fmt: skip
ALL = (*FAMILIES, "mobilevlm")


class Sides(MemoryCorpus):
    """Images of several shapes, which variable families make several numbers of tokens of."""

    def picture(self, key):
        height, width = ((24, 24), (24, 60), (70, 30), (64, 64))[int(key) % 4]
        return np.random.default_rng(int(key)).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where, made = tmp_path_factory.mktemp("twins"), {}

    def get(family, size="student"):
        if (family, size) not in made:
            folder = where / f"{family}-{size}"
            made[family, size] = mobilevlm_twin(folder, size) if family == "mobilevlm" else twin(family, folder, size)
        return made[family, size]

    return get


def tokens(folder, corpus, out, template=None):
    adapter = models.load(folder)
    if template is not None:
        adapter.template = template
    tokenised.write(corpus, adapter, out, lambda *_: None)
    return out


def outcome(make):
    """A row, or what was said against it."""
    try:
        return make()
    except UserError as error:
        return type(error), str(error)


def same(one, other):
    if isinstance(one, tuple) or isinstance(other, tuple):
        assert one == other
        return
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if field.name == "pixels":
            assert mine.keys() == theirs.keys()
            for name, value in mine.items():
                assert (value.dtype, torch.equal(value, theirs[name])) == (theirs[name].dtype, True), name
        elif isinstance(mine, np.ndarray):
            assert (mine.dtype, mine.tolist()) == (theirs.dtype, theirs.tolist()), field.name
        else:
            assert mine == theirs, field.name


# ---- rows ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_a_row_of_stored_tokens_is_the_row_whatever_the_limit(folders, tmp_path, family):
    corpus, adapter = Sides(ROWS), models.load(folders(family))
    kept = Tokenised(tokens(folders(family), corpus, tmp_path / "kept"), tokenised.key(adapter, corpus))
    assert (len(kept), kept.unread) == (len(corpus), 0)
    cut = dropped = nothing = 0
    for index in range(len(corpus)):
        conversation = corpus[index]
        pictures = [corpus.picture(key) for key in conversation.images]
        whole = kept[index]
        places = np.flatnonzero(whole.supervised)
        # before the first reply, inside it, before and inside the last, one short of the end, and beyond it
        limits = {None, int(places[0]), int(places[0]) + 1, int(places[-1]) - 1, int(places[-1]), int(places[-1]) + 1, 9999}
        for limit in sorted(limits, key=str):
            expected = outcome(lambda: adapter.row(conversation, pictures, limit))  # noqa: B023 - called at once
            same(outcome(lambda: adapter.cut(whole, conversation.id, pictures, limit)), expected)  # noqa: B023
            nothing += isinstance(expected, tuple) and "nothing to learn" in expected[1]
            cut += not isinstance(expected, tuple) and expected.cut > 0
            dropped += not isinstance(expected, tuple) and expected.pictures < len(pictures)
    assert cut and nothing and (dropped or family == "llava_onevision")  # whose images change when others are dropped


@pytest.mark.parametrize("family", ["llava", "llava_qwen", "mobilevlm"])
def test_features_stand_where_pixels_would(folders, tmp_path, family):
    corpus, adapter = MemoryCorpus(ROWS), models.load(folders(family))
    stored(adapter, {key: corpus.picture(key) for row in corpus.rows for key in row.images}, tmp_path / "features")
    features = Features(tmp_path / "features", keys.key(adapter, half=False))
    kept = Tokenised(tokens(folders(family), corpus, tmp_path / "kept"), tokenised.key(adapter, corpus))
    for index in range(len(corpus)):
        shown = [features[key] for key in corpus[index].images]
        for limit in (None, 60, len(kept[index].ids) - 1):
            expected = outcome(lambda: adapter.row(corpus[index], shown, limit))  # noqa: B023 - called at once
            same(outcome(lambda: adapter.cut(kept[index], corpus[index].id, shown, limit)), expected)  # noqa: B023


def test_the_format_of_captions_has_tokens_of_its_own(folders, tmp_path):
    corpus, adapter = MemoryCorpus([MIXED[0], MIXED[1], MIXED[7]]), models.load(folders("mobilevlm"))
    other = tokenised.key(adapter, corpus)
    adapter.template = "plain"
    kept = Tokenised(tokens(folders("mobilevlm"), corpus, tmp_path / "kept", "plain"), tokenised.key(adapter, corpus))
    assert (kept.unread, kept[1]) == (1, None)  # plain is for rows about an image; whoever takes this one hears it
    same(adapter.cut(kept[0], "row0", [corpus.picture("1")]), adapter.row(corpus[0], [corpus.picture("1")]))
    with pytest.raises(tokenised.Unfit, match="reads text or images otherwise"):
        Tokenised(tmp_path / "kept", other)


# ---- who may use them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_a_student_reads_as_what_it_started_from(folders, tmp_path, family):
    """A later stage of a training starts from what the first one saved."""
    corpus, adapter = MemoryCorpus(ROWS), models.load(folders(family))
    before = tokenised.key(adapter, corpus)
    adapter.row(corpus[2], [corpus.picture(key) for key in corpus[2].images])
    adapter.save(tmp_path / "student")
    assert tokenised.key(adapter, corpus) == before  # which a use of the processor does not change
    assert tokenised.key(models.load(tmp_path / "student"), corpus) == before


def test_another_template_tokenizer_or_corpus_is_another_key(folders, tmp_path):
    corpus, adapter = MemoryCorpus(ROWS), models.load(folders("llava_qwen"))
    out, before = tokens(folders("llava_qwen"), corpus, tmp_path / "kept"), tokenised.key(adapter, corpus)
    assert tokenised.opened(out, corpus, adapter)[1] == f"tokens of {len(ROWS)} rows, made once"
    assert tokenised.opened(None, corpus, adapter) == (None, "no tokens are stored")
    with pytest.raises(tokenised.Unfit, match="of other rows"):
        Tokenised(out, tokenised.key(adapter, MemoryCorpus(MIXED)))
    processor = adapter.processor
    adapter.processor.tokenizer.add_tokens(["picture"])
    assert tokenised.key(adapter, corpus) != before
    found, why = tokenised.opened(out, corpus, adapter)
    assert (found, why) == (None, "it reads text or images otherwise than the base, whose tokens are stored")
    template, processor.chat_template = processor.chat_template, "{{ strftime_now('%d') }}"
    assert "writes the date" in tokenised.opened(out, corpus, adapter)[1]
    processor.chat_template = template.replace("helpful", "kind")
    assert tokenised.key(adapter, corpus) != before


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("ids.npy", lambda path: path.write_bytes(path.read_bytes()[:-5]), r"ids\.npy is missing or cut off"),
        ("supervised.npy", lambda path: path.unlink(), r"supervised\.npy is missing or cut off"),
        ("starts.npy", lambda path: np.save(path, np.zeros(3, np.int32)), r"starts\.npy is int32 \(3,\), meta\.json says"),
        ("places.npy", lambda path: np.save(path, np.load(path) * 0), "places.npy does not fit the other arrays"),
        ("meta.json", lambda path: path.unlink(), "holds no tokens of version 1"),
    ],
)
def test_a_damaged_cache_is_refused_by_name(folders, tmp_path, file, change, message):
    corpus, adapter = MemoryCorpus(ROWS), models.load(folders("llava_qwen"))
    change(tokens(folders("llava_qwen"), corpus, tmp_path / "kept") / file)
    with pytest.raises(UserError, match=message):
        tokenised.opened(tmp_path / "kept", corpus, adapter)


# ---- pictures --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path):
    return indexed(tmp_path / "corpus", rows=12, seed=3, text_only=0.25)


@pytest.fixture
def shown(tiny, tmp_path):
    decoded.write(tiny, tmp_path / "pictures", lambda *_: None)
    return Decoded(tiny, tmp_path / "pictures")


def test_stored_pictures_are_the_decoded_ones_and_their_size_was_known(tiny, shown, tmp_path, monkeypatch):
    names = {name for row in tiny for name in row.images}
    expected = {name: tiny.picture(name) for name in names}
    assert tiny.facts.sizes.pixels == sum(each.size for each in expected.values())
    assert tiny.facts.sizes.shown == int(np.asarray(tiny.shows).sum())
    assert tiny.facts.sizes.turns == sum(len(row.turns) for row in tiny)
    monkeypatch.setattr(images, "read", lambda path: pytest.fail(f"{path} was decoded"))
    for name, picture in expected.items():
        assert np.array_equal(shown.picture(name), picture)
    assert shown.why == f"{len(names)} pictures, decoded once"
    assert [row.id for row in (shown[k] for k in range(len(shown)))] == [row.id for row in tiny]


def test_damaged_or_foreign_pictures_are_refused(tiny, shown, tmp_path):
    folder = shown.folder
    pixels = (folder / "pixels.npy").read_bytes()
    (folder / "pixels.npy").write_bytes(pixels[:-1])
    with pytest.raises(UserError, match=r"pixels\.npy is missing or cut off"):
        Decoded(tiny, folder)
    (folder / "pixels.npy").write_bytes(pixels)
    with pytest.raises(UserError, match="pictures of another corpus than 'memory'"):
        Decoded(MemoryCorpus(ROWS), folder)
    (folder / "names.json").unlink()
    with pytest.raises(UserError, match=r"names\.json is missing"):
        Decoded(tiny, folder)


def test_a_corpus_of_an_earlier_version_opens_without_sizes(tiny):
    path = tiny.folder / "corpus.json"
    facts = json.loads(path.read_text())
    del facts["sizes"]
    path.write_text(json.dumps(facts))
    assert type(tiny)(tiny.folder, tiny.image_root).facts.sizes is None


# ---- trainings -------------------------------------------------------------------------------------------------------------


def record(out):
    return json.loads((out / "training.json").read_text())


@pytest.mark.parametrize("family", ["llava_qwen", "qwen2_5_vl", "mobilevlm"])
def test_a_training_is_the_same_with_and_without_and_after_a_kill(folders, tiny, shown, tmp_path, family):
    base, teacher = folders(family), folders(family, "teacher")
    kept = tokens(base, shown, tmp_path / "kept")
    plain, fed = StreamInputs(base, tiny, teacher), StreamInputs(base, shown, teacher, tokens=kept)
    killed("ce+fkl@instance", OPTIONS, fed, tmp_path / "killed", at=2)
    for name, inputs in (("plain", plain), ("killed", fed), ("fed", fed)):
        distil(parse("ce+fkl@instance"), OPTIONS, inputs, 0, tmp_path / name, lambda *_: None)
    identical(tmp_path / "killed", tmp_path / "fed")
    read = {"tokens": {"student": "tokens of 12 rows, made once", "teacher": "tokens of 12 rows, made once"}}
    read["pictures"] = {"images": shown.why}
    without = record(tmp_path / "plain")
    assert record(tmp_path / "fed") == {**without, **read}
    shutil.copy(tmp_path / "plain" / "training.json", tmp_path / "fed" / "training.json")
    identical(tmp_path / "fed", tmp_path / "plain")
    assert lines(tmp_path / "fed") == lines(tmp_path / "plain")


def test_a_student_of_stored_rows_asks_neither_tokenizer_nor_decoder(folders, tiny, shown, tmp_path, monkeypatch):
    base, asked_for = folders("llava_qwen"), []
    kept = tokens(base, shown, tmp_path / "kept")
    tokenizer = type(models.load(base).processor.tokenizer)
    call = tokenizer.__call__
    monkeypatch.setattr(tokenizer, "__call__", lambda self, *a, **k: asked_for.append("text") or call(self, *a, **k))
    look = images.read
    monkeypatch.setattr(images, "read", lambda path: asked_for.append("image") or look(path))
    distil(parse("ce"), OPTIONS, StreamInputs(base, tiny), 0, tmp_path / "plain", lambda *_: None)
    assert {"text", "image"} == set(asked_for)
    asked_for.clear()
    for seed in (0, 1):
        inputs = StreamInputs(base, shown, tokens=kept)
        distil(parse("ce"), OPTIONS, inputs, seed, tmp_path / f"fed{seed}", lambda *_: None)
    assert asked_for == []


def test_a_teacher_that_reads_otherwise_makes_its_own_tokens(folders, tiny, shown, tmp_path):
    """A family of the same vocabulary and another way with images; the student has the stored ones."""
    base, teacher = folders("llava_qwen"), folders("qwen2_5_vl", "teacher")
    kept = tokens(base, shown, tmp_path / "kept")
    for name, inputs in (
        ("plain", StreamInputs(base, tiny, teacher)),
        ("fed", StreamInputs(base, shown, teacher, tokens=kept)),
    ):
        distil(parse("ce+fkl"), OPTIONS, inputs, 0, tmp_path / name, lambda *_: None)
    said = record(tmp_path / "fed")["tokens"]
    assert said["student"] == "tokens of 12 rows, made once"
    assert said["teacher"] == "it reads text or images otherwise than the base, whose tokens are stored"
    assert lines(tmp_path / "fed") == lines(tmp_path / "plain")


def test_the_teachers_pass_takes_the_stored_rows_too(folders, tiny, shown, tmp_path):
    base, teacher = folders("qwen2_5_vl"), folders("qwen2_5_vl", "teacher")
    kept = tokens(base, shown, tmp_path / "kept")
    for limit in (None, 60):
        assert streams.count(teacher, tiny, None, limit) == streams.count(teacher, shown, None, limit, tokens=kept)
    streams.cache(teacher, tiny, tmp_path / "plain", lambda *_: None, rows=3)
    streams.cache(teacher, shown, tmp_path / "fed", lambda *_: None, rows=3, tokens=kept)
    for file in sorted((tmp_path / "plain").iterdir()):
        assert file.read_bytes() == (tmp_path / "fed" / file.name).read_bytes(), file.name
