"""A MobileVLM folder that is not whole, not safe or of another layout: one line that names the thing and the remedy."""

import json
import os
import re

import pytest
import torch
import twins
from safetensors.torch import load_file, save_file

from harness.base import UserError
from students import models

CONFIG, WEIGHTS, WORDS = "config.json", "pytorch_model.bin", "tokenizer.model"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    where = tmp_path_factory.mktemp("whole")
    return {layout: twins.mobilevlm_twin(where / layout, layout=layout) for layout in ("bin", "safetensors", "sharded")}


@pytest.fixture
def folder(good, tmp_path):
    return copy(good["bin"], tmp_path / "student")


def copy(source, target):
    """A copy whose files are links until they are written anew: weights are not copied for every test."""
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target / path.relative_to(source))
    return target


def rewrite(path, content):
    path.unlink(missing_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(json.dumps(content))


def configured(folder, **changes):
    facts = json.loads((folder / CONFIG).read_text())
    rewrite(folder / CONFIG, {key: value for key, value in (facts | changes).items() if value != "absent"})


def weighted(folder, change):
    found = change(torch.load(folder / WEIGHTS, weights_only=True))
    (folder / WEIGHTS).unlink()
    torch.save(found, folder / WEIGHTS)


def refused(folder):
    """The one line that loading the folder ends with."""
    with pytest.raises(UserError) as caught:
        models.load(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_whole_folders_load(good):
    for folder in good.values():
        models.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "ldpnet"}, "unknown mm_projector_type 'ldpnet'. Did you mean 'ldpnetv2'? Known: ldpnetv2"),
        ({"mm_projector_type": "mlp2x_gelu"}, "unknown mm_projector_type 'mlp2x_gelu'. Known: ldpnetv2"),
        ({"mm_projector_type": "absent"}, "unknown mm_projector_type 'None'"),
        ({"vision_tower_type": "siglip"}, "unknown vision_tower_type 'siglip'. Did you mean 'clip'? Known: clip"),
        ({"mm_vision_select_feature": "cls_patch"}, "unknown mm_vision_select_feature 'cls_patch'"),
        ({"mm_vision_select_layer": -9}, "mm_vision_select_layer is -9; the tower has 3 layers, so allowed: -4 to 3"),
        ({"image_aspect_ratio": "anyres"}, "unknown image_aspect_ratio 'anyres'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is true; allowed: false"),
        ({"mm_vision_tower": "absent"}, "names no vision tower"),
        ({"mm_hidden_size": 20}, "mm_hidden_size is 20, and the vision tower 'clip-twin' is 16 wide"),
        ({"hidden_size": 40}, "and config.json says"),
        ({"num_hidden_layers": 3}, "lacks 9 of 9"),
        ({"model_type": "mobilvlm"}, "unknown model type 'mobilvlm'. Did you mean 'mobilevlm' or"),
    ],
)
def test_configurations_that_are_no_mobilevlm_v2(folder, changes, message):
    configured(folder, **changes)
    assert message in refused(folder)


@pytest.mark.parametrize("tower", ["twins/no-such-clip", "/nowhere/clip"])
def test_a_tower_that_is_not_here_is_named_with_the_command_that_fetches_it(folder, tower):
    configured(folder, mm_vision_tower=tower)
    text = refused(folder)
    assert f"needs the vision tower '{tower}'" in text and "hf download" in text


def test_a_tower_folder_of_something_else(folder):
    rewrite(folder / twins.TOWER_FOLDER / CONFIG, {"model_type": "siglip"})
    assert "unknown vision tower 'siglip'. Did you mean 'clip'? Known: clip" in refused(folder)


def test_weights_without_a_tower_need_its_folder_to_have_them(folder):
    weighted(folder, lambda found: {name: v for name, v in found.items() if "vision_tower" not in name})
    assert re.search(r"clip-twin has no weights .*download it again", refused(folder))


# ---- weights ---------------------------------------------------------------------------------------------------------------


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    assert "has no weights (model.safetensors or pytorch_model.bin)" in refused(folder)


def test_half_a_download_of_shards(good, tmp_path):
    folder = copy(good["sharded"], tmp_path / "half")
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    assert "half a download" in refused(folder) and "pytorch_model-00002-of-00002.bin" in refused(folder)


@pytest.mark.parametrize(("layout", "name"), [("bin", WEIGHTS), ("safetensors", "model.safetensors")])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_is_cut_off(good, tmp_path, layout, name, share):
    folder = copy(good[layout], tmp_path / "cut")
    content = (folder / name).read_bytes()
    rewrite(folder / name, content[: int(share * len(content))])
    assert re.search(rf"{name} is (truncated or damaged|empty)", refused(folder))


def test_a_lost_weight_is_named(folder):
    gone = "model.layers.1.mlp.up_proj.weight"
    weighted(folder, lambda found: {name: v for name, v in found.items() if name != gone})
    assert f"lacks 1 of 82 weights: {gone}; download it again" in refused(folder)


def test_part_of_a_tower_is_no_tower(folder):
    gone = "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias"
    weighted(folder, lambda found: {name: v for name, v in found.items() if name != gone})
    assert f"lacks 1 of 82 weights: {gone}" in refused(folder)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("model.mm_projector.", "model.multi_modal_projector."),
        ("model.layers.", "model.language_model.layers."),
        ("model.mm_projector.peg.peg.0", "model.mm_projector.peg.0"),
        ("lm_head.", "head."),
    ],
)
def test_another_layout_names_the_weight_that_does_not_fit(folder, old, new):
    weighted(folder, lambda found: {name.replace(old, new): v for name, v in found.items()})
    text = refused(folder)
    assert new in text and "expected is the published layout" in text


def test_another_shape_is_named(folder):
    name = "model.mm_projector.mlp.mlp.0.weight"
    weighted(folder, lambda found: found | {name: found[name][:, :10].clone()})
    assert f"{name} has shape [32, 10], and config.json says [32, 16]" in refused(folder)


def test_something_that_is_no_state(folder):
    (folder / WEIGHTS).unlink()
    torch.save([torch.zeros(2)], folder / WEIGHTS)
    assert "holds no weights by name" in refused(folder)


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_never_run(folder, tmp_path, zipped):
    found = torch.load(folder / WEIGHTS, weights_only=True) | {"x": _Touch(str(tmp_path / "ran"))}
    (folder / WEIGHTS).unlink()
    torch.save(found, folder / WEIGHTS, _use_new_zipfile_serialization=zipped)
    text = refused(folder)
    assert f"{folder / WEIGHTS} is a pickle with code in it, which is never run" in text and "safetensors" in text
    assert not (tmp_path / "ran").exists()
    from tasks.lmms import CheckpointModel

    models.register()
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle with code in it"):
        CheckpointModel(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_of_before_torch_1_6_are_read(folder, good):
    weighted(folder, lambda found: found)
    found = torch.load(folder / WEIGHTS, weights_only=True)
    (folder / WEIGHTS).unlink()
    torch.save(found, folder / WEIGHTS, _use_new_zipfile_serialization=False)
    mine, other = models.load(folder).model.state_dict(), models.load(good["bin"]).model.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in other)


# ---- text and images -------------------------------------------------------------------------------------------------------


def test_no_vocabulary(folder):
    (folder / WORDS).unlink()
    assert re.search(r"tokenizer\.model is missing: .*copy it from where the weights come from", refused(folder))


def test_a_vocabulary_that_is_cut_off(folder):
    rewrite(folder / WORDS, twins.sentencepiece_model()[:100])
    assert "tokenizer.model is truncated or damaged" in refused(folder)


def test_settings_of_a_tokenizer_that_are_damaged(folder):
    rewrite(folder / "tokenizer_config.json", b"{")
    assert "tokenizer_config.json is damaged" in refused(folder)


def test_no_preprocessing(folder):
    (folder / twins.TOWER_FOLDER / "preprocessor_config.json").unlink()
    assert re.search(r"clip-twin/preprocessor_config\.json is missing", refused(folder))


# ---- assembling ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda language, tower: (tower / WEIGHTS).unlink(), r"tower has no weights"),
        (lambda language, tower: (tower / CONFIG).unlink(), r"tower is no CLIP tower"),
        (lambda language, tower: (language / WORDS).unlink(), r"tokenizer\.model is missing"),
        (lambda language, tower: rewrite(language / CONFIG, {"model_type": "gpt2"}), r"unknown language model 'gpt2'"),
        (lambda language, tower: configured(language, hidden_size=40), r"language: weight .* of another shape"),
    ],
)
def test_parts_that_do_not_fit_leave_nothing_behind(tmp_path, change, message):
    from students.models.mobilevlm import assemble

    language = twins.mobilellama_twin(tmp_path / "language")
    tower = twins.clip_tower(tmp_path / "tower")
    change(language, tower)
    with pytest.raises(UserError, match=message):
        assemble(language, tower, tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()


def test_a_projector_of_another_width_is_refused(tmp_path):
    from students.models.mobilevlm import assemble

    language = twins.mobilellama_twin(tmp_path / "language")
    tower = twins.clip_tower(tmp_path / "tower")
    torch.save(twins.projector_weights("teacher", 0), tmp_path / "mm_projector.bin")
    with pytest.raises(UserError, match=r"mm_projector\.bin is no LDPv2 projector of this width"):
        assemble(language, tower, tmp_path / "out", 0, projector=tmp_path / "mm_projector.bin")
    with pytest.raises(UserError, match=r"mm_projector\.bin is missing"):
        assemble(language, tower, tmp_path / "out", 0, projector=tower)


def test_safetensors_with_a_lost_weight(good, tmp_path):
    folder = copy(good["safetensors"], tmp_path / "lost")
    found = load_file(folder / "model.safetensors")
    found.pop("lm_head.weight")
    (folder / "model.safetensors").unlink()
    save_file(found, folder / "model.safetensors")
    assert "lacks 1 of 82 weights: lm_head.weight" in refused(folder)
