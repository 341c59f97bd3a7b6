"""What is missing or not whole: weights by their headers, corpora, benchmarks; and what is fetched."""

import zipfile
from pathlib import Path

import pytest
from small_models import model, safetensors, shards

import harness
from harness import config, missing, weights
from harness.base import UserError

HOME = Path(harness.__file__).parents[1]

# ---- weights, from their headers -------------------------------------------------------------------------------------------


SHAPES = {"language_model.a": [3, 5], "vision_tower.b": [4], "multi_modal_projector.c": [2, 2]}


def test_sizes_are_read_from_headers(tmp_path):
    safetensors(tmp_path / "model.safetensors", SHAPES)
    found = weights.read(tmp_path)
    assert (found.parameters, found.tower, found.exact) == (15 + 4 + 4, 4, True)
    assert found.size == (tmp_path / "model.safetensors").stat().st_size


def test_sizes_of_a_real_checkpoint_are_torchs(tmp_path):
    from safetensors.torch import load_file

    folder = HOME / "students" / "miniature" / "base"
    own = load_file(folder / "model.safetensors")
    found = weights.read(folder)
    assert found.parameters == sum(tensor.numel() for tensor in own.values())
    assert 0 < found.tower < found.parameters
    assert weights.shape(folder).hidden == 96


def test_half_a_download_is_no_checkpoint(tmp_path):
    second = shards(tmp_path)[1]
    assert weights.read(tmp_path).parameters == 7
    whole = (tmp_path / second).read_bytes()
    (tmp_path / second).write_bytes(whole[:-1])
    with pytest.raises(UserError, match=f"{second} is cut off or damaged: it has .* bytes, its header needs"):
        weights.read(tmp_path)
    (tmp_path / second).write_bytes(whole[:20])
    with pytest.raises(UserError, match="its header is not whole"):
        weights.read(tmp_path)
    (tmp_path / second).unlink()
    with pytest.raises(UserError, match=rf"{second} is missing, but .* lists it \(1 of 2 files are missing\)"):
        weights.read(tmp_path)


def test_pickled_weights_are_told_by_their_size_and_never_opened(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("data", bytes(1000))
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    found = weights.read(tmp_path)
    assert (found.parameters, found.exact) == (path.stat().st_size // 2, False)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match="is cut off or damaged: it is no whole weight file"):
        weights.read(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(UserError, match="holds no weights"):
        weights.read(tmp_path)


# ---- what is missing -------------------------------------------------------------------------------------------------------


def test_a_family_that_nobody_knows_is_named(tmp_path):
    preset = config.load_preset("paper-table2")
    given = config.Models(teacher=model(tmp_path / "t", "nobodys"), base=model(tmp_path / "b"))
    (found,) = missing.missing_models(given, trained=True)
    assert (found.name, found.fetched) == ("teacher", False)
    assert "unknown model type 'nobodys'" in found.text
    assert not missing.missing_models(given, trained=False), "evaluating is transformers' business"
    with pytest.raises(UserError, match=r"model teacher: .*unknown model type 'nobodys'"):
        missing.refuse(missing.missing_models(given, trained=True), online=True)
    assert preset.trains


def test_half_a_model_in_the_hubs_cache_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--own--er" / "snapshots" / "abc"
    place.mkdir(parents=True)
    given = config.Models(external={"mine": "own/er"})
    monkeypatch.setattr("harness.hub.cached", lambda _: place)
    (found,) = missing.missing_models(given, trained=False)
    assert found.fetched and "has no config.json" in found.text
    (place / "config.json").write_text("{}")
    shards(place)
    (place / "model-00002-of-00002.safetensors").unlink()
    (found,) = missing.missing_models(given, trained=False)
    assert "half a download" in found.text
    shards(place)
    assert not missing.missing_models(given, trained=False)


def corpus_preset(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: paper-table4\nname: mine\nprotocols: [pope@miniature]\n")
    return config.load_preset(str(path))


def test_a_corpus_is_its_file_and_its_images(tmp_path):
    preset = corpus_preset(tmp_path)

    def found(root):
        return [each for each in missing.find(preset, config.Models(), ["pope@miniature"], root) if each.kind == "corpus"]

    assert "no --data-root is given" in found(None)[0].text
    assert len(found(tmp_path)) == 2
    (tmp_path / "pretrain_data").mkdir()
    assert "_1107.json not found" in found(tmp_path)[0].text
    (tmp_path / "pretrain_data" / "share-captioner_coco_lcs_sam_1246k_1107.json").write_text("[]")
    assert [each.name for each in found(tmp_path)] == ["instructions"]


def test_what_is_cached_is_not_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    preset = config.load_preset("paper-table2")

    def names():
        return [(each.kind, each.name) for each in missing.find(preset, config.Models(), list(preset.protocols), None)]

    assert names() == [("corpus", "scienceqa"), ("benchmark", "scienceqa")]
    (tmp_path / "lmms-lab___science_qa").mkdir()
    assert names() == []


# ---- fetching --------------------------------------------------------------------------------------------------------------


def test_models_are_fetched_once_and_looked_at_afterwards(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--own--er" / "snapshots" / "abc"
    monkeypatch.setattr("harness.hub.cached", lambda _: place)
    fetched = []

    def fetch(name, whole=True):
        fetched.append(name)
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text("{}")
        if whole:
            safetensors(place / "model.safetensors", {"a": [3]})

    given = config.Models(external={"mine": "own/er", "again": "own/er"})
    monkeypatch.setattr("harness.hub.fetch", lambda name: fetch(name, whole=False))
    with pytest.raises(UserError, match=r"model mine: .*holds no weights"):
        missing.fetch(given)
    monkeypatch.setattr("harness.hub.fetch", fetch)
    missing.fetch(given)
    missing.fetch(given)
    assert fetched == ["own/er", "own/er"], "once each time it was not whole, and not for a second name"
