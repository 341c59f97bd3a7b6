"""Weight files written by hand, as small as they can be."""

import json
import struct


def safetensors(path, shapes, dtype="F32", width=4):
    """Write a safetensors file by hand."""
    at, header = 0, {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        size = width
        for each in shape:
            size *= each
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))


def shards(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
    safetensors(folder / names[0], {"a": [3]})
    safetensors(folder / names[1], {"b": [4]})
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return names


def model(folder, kind="mobilevlm"):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "hidden_size": 4}))
    safetensors(folder / "model.safetensors", {"a": [3]})
    return str(folder)
