"""Features of a frozen tower that are stored: exactly what the projector reads, shared by whoever has that tower alone."""

import copy
import json

import numpy as np
import pytest
import torch
from memory_corpus import MIXED, MemoryCorpus
from stored_features import stored
from twin_families import FAMILIES, twin
from twins import mobilevlm_twin

from harness.base import UserError
from students import checkpoint, models, taps
from students.data.pack import collate, groups
from students.distil import Inputs, StreamInputs, distil
from students.models.llava import LlavaAdapter
from students.options import DistilOptions
from students.recipe import parse
from students.vision import FAMILIES as SPLIT
from students.vision import keys, pictures, store

PACKED = DistilOptions(steps=6, rows=4, turns=3, warmup=1, betas_every=2, flush_every=3)
STREAMED = DistilOptions(steps=4, rows=4, micro_rows=2, optimiser="adamw", lr=2e-3, warmup=0, flush_every=2, max_length=700)


@pytest.fixture(scope="module")
def alike(folders, tmp_path_factory):
    """Where a teacher lies that has the tower of the base, and another width."""
    teacher = LlavaAdapter.load(folders / "teacher")
    teacher.tower.load_state_dict(LlavaAdapter.load(folders / "base").tower.state_dict())
    out = tmp_path_factory.mktemp("alike") / "teacher"
    teacher.save(out)
    return out


@pytest.fixture(scope="module")
def seen(folders, data, tmp_path_factory):
    """The base's features of the training images."""
    return stored(LlavaAdapter.load(folders / "base"), data.images, tmp_path_factory.mktemp("seen") / "vision")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    where = tmp_path_factory.mktemp("mobilevlm")
    return tuple(mobilevlm_twin(where / size, size, seed=k) for k, size in enumerate(("student", "teacher")))


def dynamics(out):
    return [json.loads(line) for line in (out / "dynamics.jsonl").read_text().splitlines()]


def apart(one, other):
    """The largest difference between the losses of two trainings, step by step."""
    pairs = zip(dynamics(one), dynamics(other), strict=True)
    return max(abs(a["loss"][c] - b["loss"][c]) for a, b in pairs for c in a["loss"])


def same_checkpoints(one, other):
    first, second = (dict(checkpoint.tensors(out / "student" / "model.safetensors")) for out in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        torch.testing.assert_close(value, second[name], atol=1e-5, rtol=1e-4)
        if "vision_tower" in name:
            assert torch.equal(value, second[name])


# ---- the tower, run apart --------------------------------------------------------------------------------------------------


def test_the_families_whose_tower_is_run_apart_are_those_the_plan_knows():
    import importlib

    split = {name for name, module in models.families().items() if importlib.import_module(module).ADAPTER.splits}
    assert split == set(SPLIT)


@pytest.mark.parametrize("kind", ["llava", "llava_qwen", "mobilevlm"])
def test_features_give_what_pixels_give_bit_for_bit(kind, pair, tmp_path):
    folder = pair[0] if kind == "mobilevlm" else twin(kind, tmp_path / kind, "student", seed=3)
    adapter = models.load(folder)
    side = adapter.tower_settings()["image_size"]
    pixels = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = adapter.features(pixels)
        assert found.ndim == 3
        assert torch.equal(adapter.vision(found), adapter.vision(pixels))
        assert torch.equal(adapter.vision(found[1:3]), adapter.vision(pixels)[1:3])
    adapter.tower.forward = None  # from here on the tower must not be run
    adapter.vision(found)


def test_a_copy_of_a_model_projects_with_its_own_projector(folders):
    adapter = LlavaAdapter.load(folders / "base")
    found = adapter.features(adapter.pixels([np.zeros((8, 8, 3), np.uint8)]))
    copied = copy.deepcopy(adapter.model)
    with torch.no_grad():
        before = adapter.vision(found)
        copied.model.multi_modal_projector.linear_2.bias += 1
        assert torch.equal(adapter.vision(found), before)
        assert torch.equal(torch.stack(list(copied.model.get_image_features(found).pooler_output)), before + 1)


def test_taps_and_states_are_those_of_pixels(folders, data, encoded, seen):
    student = LlavaAdapter.load(folders / "base")
    rows = groups(encoded, 3, seed=1)[:4]
    tables = pictures.pixel_table(student, data), store.Features(seen, keys.key(student, False))
    with torch.no_grad():
        (one, first), (other, second) = (student.observe(collate(encoded, rows, table), taps.NAMES) for table in tables)
    assert torch.equal(one, other)
    assert first.keys() == second.keys()
    for name, tap in first.items():
        assert torch.equal(tap, second[name]), name


def test_a_family_that_cannot_be_split_says_so(tmp_path):
    for family in FAMILIES:
        adapter = models.load(twin(family, tmp_path / family, "student", seed=0))
        assert (keys.unsplit(adapter) is None) == (adapter.family in SPLIT)
        if not adapter.splits:
            with pytest.raises(UserError, match="not run apart"):
                adapter.features(torch.zeros(1, 3, 8, 8))
            assert "variable numbers of tokens" in str(keys.unsplit(adapter))


# ---- the store -------------------------------------------------------------------------------------------------------------


def test_features_do_not_depend_on_the_batches_they_were_computed_in():
    assert store.batches(0) == []
    assert store.batches(1, 4) == [(0, 1)]
    assert store.batches(9, 4) == [(0, 4), (4, 7), (7, 9)]  # a batch of one rounds otherwise
    assert [b - a for a, b in store.batches(130, 64)] == [64, 64, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_stored_is_what_was_computed(folders, data, tmp_path, dtype):
    adapter = LlavaAdapter.load(folders / "base", dtype=dtype)
    out = stored(adapter, data.images, tmp_path / "v", content=True)
    found = store.Features(out, keys.key(adapter, False))
    pixels = adapter.pixels([data.images[name] for name in found])
    expected = adapter.features(pixels)
    for number, name in enumerate(found):
        assert found[name].dtype == dtype
        assert torch.equal(found[name], expected[number])
        assert torch.equal(found.of(keys.fingerprint(pixels[number])), expected[number])
    assert found.of(keys.fingerprint(pixels[0] + 1)) is None
    again = stored(adapter, data.images, tmp_path / "again", content=True)
    for name in (store.META, store.FEATURES, store.NAMES, store.CONTENT):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_another_tower_or_preprocessing_or_arithmetic_is_another_key(folders, alike, seen):
    base, teacher, same = (LlavaAdapter.load(folder) for folder in (folders / "base", folders / "teacher", alike))
    assert keys.difference(keys.key(base, False), keys.key(same, False)) is None
    with pytest.raises(store.Unfit, match="the tower's weights are others"):
        store.Features(seen, keys.key(teacher, False))
    with pytest.raises(store.Unfit, match="another precision"):
        store.Features(seen, keys.key(base, True))
    base.processor.image_processor.image_mean = [0.4] * 3
    with pytest.raises(store.Unfit, match="preprocessed otherwise"):
        store.Features(seen, keys.key(base, False))
    same.model.config.vision_feature_layer = -2
    assert "read otherwise" in pictures.opened(seen, same, False).why
    assert pictures.opened(None, same, False).why == "no features are stored"


def test_a_tower_that_changes_is_not_computed_once(folders, seen):
    adapter = LlavaAdapter.load(folders / "base")
    adapter.learn(("language", "tower"))
    assert pictures.opened(seen, adapter, False) == pictures.Opened(None, "the tower learns")
    adapter.learn(("language",))
    adapter.model.config.vision_config.attention_dropout = 0.1
    assert "dropout" in pictures.opened(seen, adapter, False).why


def test_augmented_images_are_refused(folders, monkeypatch):
    adapter = LlavaAdapter.load(folders / "base")
    monkeypatch.setattr(adapter, "pixels", lambda images: torch.rand(len(images), 3, 8, 8))
    with pytest.raises(UserError, match="augmented"):
        keys.key(adapter, False)


def test_damaged_features_are_named(folders, data, tmp_path):
    adapter = LlavaAdapter.load(folders / "base")
    out = stored(adapter, data.images, tmp_path / "v")
    whole = (out / store.FEATURES).read_bytes()
    for damage, message in ((whole[:-8], "features.npy"), (None, "features.npy")):
        if damage is None:
            (out / store.FEATURES).unlink()
        else:
            (out / store.FEATURES).write_bytes(damage)
        with pytest.raises(UserError, match=message):
            pictures.opened(out, adapter, False)
    (out / store.META).unlink()
    with pytest.raises(UserError, match=r"meta\.json"):
        pictures.opened(out, adapter, False)


def test_a_tower_that_is_not_finite_names_the_images(folders, data, tmp_path):
    adapter = LlavaAdapter.load(folders / "base")
    with torch.no_grad():
        adapter.tower.embeddings.patch_embedding.weight[0] = torch.nan
    with pytest.raises(FloatingPointError, match=next(iter(data.images))):
        stored(adapter, data.images, tmp_path / "v")
    assert not (tmp_path / "v" / store.META).exists()


# ---- trainings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["ce", "ce+fkl@task", "ce+fd@instance"])
def test_packed_trainings_are_the_same_with_and_without(train, seen, alike, recipe):
    given = {"teacher": alike, "options": PACKED.model_copy(update={"live_teacher": recipe != "ce"})}
    plain, short = train(recipe, "plain", **given), train(recipe, "short", vision=seen, **given)
    assert apart(plain, short) <= 1e-5
    same_checkpoints(plain, short)
    facts = json.loads((short / "training.json").read_text())
    assert facts["vision"] == {"student": "features of 3 images, computed once"}
    assert "vision" not in json.loads((plain / "training.json").read_text())


def test_no_tower_is_run_where_features_are_stored(train, seen, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the tower was run")

    monkeypatch.setattr("transformers.models.clip.modeling_clip.CLIPVisionModel.forward", refuse)
    with monkeypatch.context() as patch:
        patch.setattr(LlavaAdapter, "pixels", _only_probes(LlavaAdapter.pixels))
        train("ce", vision=seen, options=PACKED)
    with pytest.raises(AssertionError, match="the tower was run"):
        train("ce", "plain", options=PACKED)


def _only_probes(real):
    def pixels(self, images):
        assert len(images) == 1, "pictures of the training were preprocessed"
        return real(self, images)

    return pixels


def test_a_training_that_moves_the_tower_or_has_another_reads_pixels(train, seen, folders):
    moving = PACKED.model_copy(update={"learn": ("projector", "tower")})
    plain, given = train("ce", "plain", options=moving), train("ce", "given", options=moving, vision=seen)
    assert apart(plain, given) == 0
    assert json.loads((given / "training.json").read_text())["vision"] == {"student": "the tower learns"}
    other = train("ce", "other", base=folders / "teacher", options=PACKED, vision=seen)
    assert json.loads((other / "training.json").read_text())["vision"] == {"student": "the tower's weights are others"}


def test_a_half_precision_training_reads_features_of_its_own_arithmetic(train, folders, data, tmp_path):
    from students.learning import Learning

    options = PACKED.model_copy(update={"precision": "bf16", "frozen_dtype": "bfloat16"})
    adapter = LlavaAdapter.load(folders / "base")
    Learning(adapter, folders / "base", options, 0)
    given = stored(adapter, data.images, tmp_path / "half", half=True)
    plain, short = train("ce", "plain", options=options), train("ce", "short", options=options, vision=given)
    assert "computed once" in json.loads((short / "training.json").read_text())["vision"]["student"]
    assert apart(plain, short) <= 1e-5
    same_checkpoints(plain, short)


def test_a_blind_teacher_is_shown_the_mean_image(train, folders, make_data, alike, tmp_path):
    from students.data.pack import encode

    blind = make_data(blind=(0, 4, 7))
    adapter = LlavaAdapter.load(folders / "base")
    table = pictures.pixel_table(adapter, blind)
    assert pictures.wanted(blind)[-1] == pictures.MEAN_IMAGE
    table[pictures.MEAN_IMAGE] = pictures.mean_image(table)
    given = tmp_path / "vision"
    store.write(adapter, list(table), lambda names: torch.stack([table[n] for n in names]), given, lambda *_: None)
    options = PACKED.model_copy(update={"live_teacher": True})
    same = {
        "data": blind, "encoded": encode(blind.samples, adapter.processor), "teacher": alike, "options": options, "signal": None
    }  # fmt: skip
    plain, short = train("ce+fkl@instance", "plain", **same), train("ce+fkl@instance", "short", vision=given, **same)
    assert apart(plain, short) <= 1e-5
    same_checkpoints(plain, short)


def test_the_teachers_kept_tokens_are_projected_from_features(alike, seen, data, make_data, tmp_path, monkeypatch):
    from students.teacher_signal import kept

    kept.cache_samples(alike, data, tmp_path / "plain", lambda *_: None)
    monkeypatch.setattr("transformers.models.clip.modeling_clip.CLIPVisionModel.forward", None)
    kept.cache_samples(alike, data, tmp_path / "short", lambda *_: None, features=seen)
    one, other = (np.load(tmp_path / name / "vision.npy") for name in ("plain", "short"))
    assert np.array_equal(one, other)


def test_features_without_the_mean_image_are_not_averaged(folders, make_data, seen):
    adapter = LlavaAdapter.load(folders / "base")
    table, why = pictures.table(adapter, make_data(blind=(0,)), seen, False)
    assert not isinstance(table, store.Features)
    assert why == "features of 1 of its images are not stored, the first is (mean image)"


# ---- streams ---------------------------------------------------------------------------------------------------------------


class Counting(MemoryCorpus):
    """Counts the images that are decoded."""

    decoded = 0

    def picture(self, key):
        self.decoded += 1
        return super().picture(key)


def names(corpus):
    return list(dict.fromkeys(key for k in range(len(corpus)) for key in corpus[k].images))


def run(recipe, inputs, out, options=STREAMED):
    distil(parse(recipe), options, inputs, 0, out, lambda *_: None)
    return out


@pytest.mark.parametrize("recipe", ["ce", "ce+fd+fkl@task"])
def test_streams_are_the_same_with_and_without_and_decode_no_image_again(pair, tmp_path, recipe):
    corpus, adapter = Counting(MIXED), models.load(pair[0])
    given = stored(adapter, {key: corpus.picture(key) for key in names(corpus)}, tmp_path / "vision")
    shared = keys.difference(keys.key(adapter, False), keys.key(models.load(pair[1]), False)) is None
    plain = run(recipe, StreamInputs(pair[0], corpus, pair[1]), tmp_path / "plain")
    corpus.decoded = 0
    short = run(recipe, StreamInputs(pair[0], corpus, pair[1], vision=given), tmp_path / "short")
    assert apart(plain, short) <= 1e-5
    same_checkpoints(plain, short)
    facts = json.loads((short / "training.json").read_text())["vision"]
    assert "computed once" in facts["student"]
    if recipe == "ce" or shared:
        assert corpus.decoded <= 4, "the first row with an image is read both ways by each model, and no other"
    else:
        assert facts["teacher"] == "the tower's weights are others"


@pytest.mark.parametrize("kind", ["llava", "llava_qwen", "mobilevlm"])
@pytest.mark.parametrize("limit", [None, 700, 40])
def test_a_row_has_the_tokens_that_the_processor_gives_it(kind, limit, pair, tmp_path):
    from students.data.conversations import NothingToLearn

    adapter = models.load(pair[0] if kind == "mobilevlm" else twin(kind, tmp_path / kind, "student", seed=2))
    corpus, compared = MemoryCorpus(MIXED), 0
    for index in range(len(corpus)):
        conversation = corpus[index]
        shown = [corpus.picture(key) for key in conversation.images]
        features = [adapter.features(adapter.pixels([picture]))[0] for picture in shown]
        try:
            row = adapter.row(conversation, shown, limit)
        except NothingToLearn:
            with pytest.raises(NothingToLearn):
                adapter.row(conversation, features, limit)
            continue
        short = adapter.row(conversation, features, limit)
        assert np.array_equal(row.ids, short.ids)
        assert np.array_equal(row.supervised, short.supervised)
        assert (row.pictures, row.cut, row.prompt) == (short.pictures, short.cut, short.prompt)
        assert row.pixels.keys() == short.pixels.keys()
        if row.pixels:
            compared += 1
            assert torch.equal(short.pixels["pixel_values"], torch.stack(features[: row.pictures]))
    assert compared or limit == 40


def test_pixels_and_features_in_one_row_are_refused(folders, data):
    adapter = LlavaAdapter.load(folders / "base")
    picture = next(iter(data.images.values()))
    with pytest.raises(ValueError, match="all or none"):
        adapter.inputs([picture, adapter.features(adapter.pixels([picture]))[0]])


def test_inputs_name_what_is_stored():
    assert Inputs.__dataclass_fields__["vision"].default is None
    assert StreamInputs.__dataclass_fields__["vision"].default is None
