"""Checkpoint folders that cannot be read: one line that names the folder and what to do, and no code of theirs is ever run."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from twin_families import twin

from harness.base import UserError
from students import models, vocabulary
from students.models._load import explained


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return twin("llava_qwen", tmp_path_factory.mktemp("whole") / "twin")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "twin")


def configure(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def refused(folder, *parts):
    """Loading says every one of ``parts`` in one line that starts with the folder (or a file in it)."""
    with pytest.raises(UserError) as caught:
        models.load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    for part in parts:
        assert part in message
    return message


def shard(folder):
    """Split the weights into two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    table = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        table |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


def pickled(folder, value):
    (folder / "model.safetensors").unlink()
    torch.save(value, folder / "pytorch_model.bin")


def test_no_checkpoint(tmp_path, folder):
    refused(tmp_path / "nowhere", "is no folder; expected a checkpoint")
    refused(tmp_path, "is no checkpoint: it has no config.json")
    (folder / "config.json").rename(folder / "adapter_config.json")
    refused(folder, "holds a LoRA adapter and no model; merge it")
    (folder / "config.json").write_text("{}")
    refused(folder, "config.json names no model_type")
    (folder / "config.json").write_text("{")
    refused(folder, "not valid JSON")


def test_unknown_families_are_named_with_their_neighbour(folder):
    configure(folder, model_type="qwen2_6_vl")
    refused(folder, "unknown model type 'qwen2_6_vl'. Did you mean 'qwen2_5_vl'", "Known: ")
    configure(folder, model_type="moondream", auto_map={"AutoModel": "modeling_moondream.Moondream"})
    refused(folder, "unknown model type 'moondream'", "brings code of its own for it, which is never run")


def test_code_in_the_folder_is_never_run(folder, tmp_path):
    """Neither a model that maps to a file, nor a processor."""
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Own:\n    pass\n")
    configure(folder, auto_map={"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own"})
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({**settings, "auto_map": {"AutoProcessor": "own.Own"}}))
    models.load(folder)  # of a known family, so that transformers' own classes serve
    assert not ran.exists()


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickles_with_code_in_them_are_refused(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    pickled(folder, {**tensors, "lm_head.extra": Trap(tmp_path / "ran")})
    said = "open), which is never run; convert it to safetensors"
    refused(folder, "holds a pickle with code in it", said)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Trap(tmp_path / "ran")}, protocol=2))  # before torch 1.6
    refused(folder, "holds a pickle with code in it", said)
    assert not (tmp_path / "ran").exists()


def test_pickles_of_tensors_are_read(whole, folder):
    pickled(folder, load_file(folder / "model.safetensors"))
    same = models.load(folder).model.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in models.load(whole).model.state_dict().items())


def test_half_a_download(whole, folder):
    shard(folder)
    same = models.load(folder).model.state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in models.load(whole).model.state_dict().items())
    first, second = sorted(folder.glob("model-*.safetensors"))
    size = second.stat().st_size
    with second.open("rb+") as file:
        file.truncate(size // 2)
    refused(folder, second.name, "is truncated or damaged", "download it again")
    second.unlink()
    refused(folder, "is half a download: model.safetensors.index.json lists 2 files and 1 of them are missing", second.name)
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "has no weights (model.safetensors or pytorch_model.bin)", first.name, "a download that did not end")
    first.unlink()
    refused(folder, "has no weights")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(folder, "is a git-lfs pointer", "git lfs pull")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    refused(folder, "lists no weights")


def test_truncated_pickles(folder):
    pickled(folder, load_file(folder / "model.safetensors"))
    size = (folder / "pytorch_model.bin").stat().st_size
    with (folder / "pytorch_model.bin").open("rb+") as file:
        file.truncate(size // 2)
    refused(folder, "is not a whole checkpoint", "download it again")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, "pytorch_model.bin is empty")


def test_weights_that_do_not_fit_the_configuration(folder):
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "linear_2" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "lacks 2 weight(s)", "linear_2.bias")
    wide = {name: torch.zeros(3, 3) if "linear_2.weight" in name else tensor for name, tensor in tensors.items()}
    save_file(wide, folder / "model.safetensors", metadata={"format": "pt"})
    refused(folder, "has weights of another shape than its config.json says: model.multi_modal_projector.linear_2.weight")


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        (["tokenizer.json", "tokenizer_config.json"], ["is not a whole checkpoint"]),
        (["processor_config.json"], ["is not a whole checkpoint"]),
        (["chat_template.jinja"], ["has no chat template (chat_template.jinja); copy it"]),
    ],
)
def test_processors_that_are_not_whole(folder, files, parts):
    for name in files:
        (folder / name).unlink()
    refused(folder, *parts)


def test_too_little_memory_is_not_blamed_on_the_download(tmp_path):
    with pytest.raises(RuntimeError, match="can't allocate memory"), explained(tmp_path):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(torch.OutOfMemoryError), explained(tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(UserError, match="is not a whole checkpoint"), explained(tmp_path):
        raise RuntimeError("PytorchStreamReader failed")


# ---- vocabularies ----------------------------------------------------------------------------------------------------------


def test_one_tokenizer_with_other_marks_and_padded_heads(tmp_path):
    """As LLaVA-Qwen 0.5B under Qwen2.5 3B: an <image> here, vision marks there, heads padded to other widths."""
    student = models.load(twin("llava_qwen", tmp_path / "student", vocabulary=420))
    teacher = models.load(twin("qwen2_5_vl", tmp_path / "teacher", "teacher", vocabulary=448))
    mine, other = student.tokens(), teacher.tokens()
    assert (student.vocabulary_size, teacher.vocabulary_size) == (420, 448)
    assert len(mine) == len(other) + 1
    assert vocabulary.check(mine, other, 420, 448) == len(other)
    assert vocabulary.check(other, mine, 448, 420) == len(other)


def test_families_with_different_tokenizers_name_what_differs(tmp_path):
    student = models.load(twin("llava", tmp_path / "student"))
    teacher = models.load(twin("qwen2_vl", tmp_path / "teacher"))
    mine, other = student.tokens(), teacher.tokens()
    with pytest.raises(UserError, match=rf"different tokenizers \({len(mine)} and {len(other)} tokens; id 0: '<unk>' against "):
        vocabulary.check(mine, other, student.vocabulary_size, teacher.vocabulary_size)
