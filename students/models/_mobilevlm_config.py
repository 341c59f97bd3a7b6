"""MobileVLM V2's configuration as it is published: Llama's keys and ``mm_*`` keys side by side.

The vision tower is only named (``mm_vision_tower``), so its sizes come from elsewhere: from what a student of ours saved,
from what is known of the one tower that the published models have, or from the tower's own folder.

Format: config.json of ``mtgv/MobileVLM_V2-1.7B`` and ``-7B``; mobilevlm/model/{mobilellama,vision_encoder}.py of
Meituan-AutoML/MobileVLM; config.json of ``openai/clip-vit-large-patch14-336``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.base import UserError, read_json, shim, unknown

shim()  # before transformers' image classes look for torchvision

from transformers import LlamaConfig  # noqa: E402 - after the shim

PROJECTORS = ("ldpnetv2",)
CLIP_L = "openai/clip-vit-large-patch14-336"
#: Sizes and preprocessing of towers that need no file to be known.
_KNOWN: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    CLIP_L: (
        {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 336, "patch_size": 14, "projection_dim": 768, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        },
        {
            "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336},
            "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
            "rescale_factor": 1 / 255, "resample": 3, "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
        },
    ),
}  # fmt: skip
_VISION = (*_KNOWN[CLIP_L][0], "attention_dropout", "num_channels", "initializer_range", "initializer_factor")
_PIXELS = tuple(_KNOWN[CLIP_L][1])
#: Llama's keys that transformers 5 writes and the published files do not have, and its values that they imply.
_IMPLIED = {"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False}


class MobileVlmConfig(LlamaConfig):  # type: ignore[misc]
    """Llama's configuration with the published ``mm_*`` keys.

    Attributes:
        mm_vision_config: sizes of the tower; kept in config.json only where nothing else would tell them.
    """

    model_type = "mobilevlm"

    mm_vision_tower: str | None = None
    vision_tower_type: str | None = None
    mm_projector_type: str | None = None
    mm_hidden_size: int | None = None
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    image_aspect_ratio: str | None = None
    mm_use_im_start_end: bool = False
    mm_use_im_patch_token: bool = False
    mm_vision_config: dict[str, Any] | None = None

    @property
    def image_token_id(self) -> int:
        """Id that stands for image features: the first beyond the vocabulary, which has none (published code uses -200)."""
        return int(self.vocab_size)

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what config.json holds, by the published names."""
        made = dict(super().to_diff_dict())
        rope = dict(made.pop("rope_parameters", None) or {})
        theta, kind = rope.pop("rope_theta", 10000.0), rope.pop("rope_type", "default")
        made |= {"rope_theta": theta, "rope_scaling": None if kind == "default" else {"type": kind, **rope}}
        if (dtype := made.pop("dtype", None)) is not None:
            made["torch_dtype"] = dtype
        for name, value in _IMPLIED.items():
            if made.get(name) == value:
                del made[name]
        if made.get("head_dim") == self.hidden_size // self.num_attention_heads:
            del made["head_dim"]
        if self.mm_vision_config is None or self.mm_vision_tower in _KNOWN:
            made.pop("mm_vision_config", None)
        return {name: made[name] for name in sorted(made)}


def check(config: MobileVlmConfig, folder: Path) -> None:
    """Refuse configurations that are not MobileVLM V2's.

    Raises:
        UserError: naming file, key, value and what is allowed.
    """
    where = folder / "config.json"
    if config.mm_projector_type not in PROJECTORS:
        known = unknown("mm_projector_type", str(config.mm_projector_type), PROJECTORS)
        raise UserError(f"{where}: {known}. MobileVLM of before V2 has another projector, which is not built here")
    if config.vision_tower_type != "clip":
        raise UserError(f"{where}: {unknown('vision_tower_type', str(config.vision_tower_type), ('clip',))}")
    if config.mm_vision_select_feature != "patch":
        feature = str(config.mm_vision_select_feature)
        raise UserError(f"{where}: {unknown('mm_vision_select_feature', feature, ('patch',))}")
    if config.image_aspect_ratio not in (None, "pad", "square"):
        ratio = str(config.image_aspect_ratio)
        raise UserError(f"{where}: {unknown('image_aspect_ratio', ratio, ('pad', 'square'))}")
    for name in ("mm_use_im_start_end", "mm_use_im_patch_token"):
        if getattr(config, name):
            raise UserError(f"{where}: {name} is true; allowed: false, as in every published MobileVLM V2")
    if not config.mm_vision_tower:
        raise UserError(f"{where} names no vision tower (mm_vision_tower), so what an image becomes is not known")


def complete(config: MobileVlmConfig, folder: Path) -> MobileVlmConfig:
    """Check a configuration and fill in the tower's sizes.

    Raises:
        UserError: see :func:`check` and :func:`tower_folder`; when the tower's width is not ``mm_hidden_size``.
    """
    check(config, folder)
    if config.mm_vision_config is None:
        config.mm_vision_config = vision_sizes(str(config.mm_vision_tower), folder)
    width = config.mm_vision_config["hidden_size"]
    if config.mm_hidden_size != width:
        raise UserError(
            f"{folder / 'config.json'}: mm_hidden_size is {config.mm_hidden_size}, and the vision tower"
            f" {config.mm_vision_tower!r} is {width} wide; they must be equal"
        )
    layers, layer = int(config.mm_vision_config["num_hidden_layers"]), config.mm_vision_select_layer
    if not -layers - 1 <= layer <= layers:
        raise UserError(
            f"{folder / 'config.json'}: mm_vision_select_layer is {layer}; the tower has {layers} layers, so allowed:"
            f" {-layers - 1} to {layers}"
        )
    return config


def vision_sizes(tower: str, folder: Path) -> dict[str, Any]:
    """Return the sizes of the tower that the checkpoint in ``folder`` names; for errors see :func:`tower_folder`."""
    if tower in _KNOWN:
        return dict(_KNOWN[tower][0])
    return read_sizes(tower_folder(tower, folder))


def read_sizes(place: Path) -> dict[str, Any]:
    """Read the sizes of a tower from its folder.

    Raises:
        UserError: when it holds no CLIP, naming what it holds.
    """
    if not (place / "config.json").is_file():
        raise UserError(f"{place} is no CLIP tower: it has no config.json")
    config = read_json(place / "config.json")
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise UserError(f"{place / 'config.json'}: {unknown('vision tower', str(config.get('model_type')), ('clip',))}")
    from transformers import CLIPVisionConfig

    given = config.get("vision_config", {}) if config["model_type"] == "clip" else config
    sizes = CLIPVisionConfig(**{name: given[name] for name in _VISION if name in given}).to_dict()
    return {name: sizes[name] for name in _VISION if name in sizes}


def pixel_settings(tower: str, folder: Path) -> dict[str, Any]:
    """Return how images are preprocessed: by the checkpoint's own file, else as its tower's.

    Raises:
        UserError: when neither is there.
    """
    name = "preprocessor_config.json"
    if (folder / name).is_file():
        given = read_json(folder / name)
    elif tower in _KNOWN:
        given = _KNOWN[tower][1]
    else:
        place = tower_folder(tower, folder)
        if not (place / name).is_file():
            raise UserError(f"{place / name} is missing, and {folder} has none either; copy it from where the tower comes from")
        given = read_json(place / name)
    return {key: given[key] for key in _PIXELS if key in given}


def tower_folder(tower: str, folder: Path) -> Path:
    """Find the tower that a checkpoint names: a folder (absolute, or inside the checkpoint's), or a model in the hub's cache.

    Raises:
        UserError: when it is neither, with the command that fetches it.
    """
    for place in (Path(tower).expanduser(), folder / tower):
        if place.is_dir() and (place.is_absolute() or place != Path(tower)):
            return place
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(tower, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError) as error:
        raise UserError(
            f"{folder} needs the vision tower {tower!r}, which is neither a folder nor a model in this machine's hub cache;"
            f" fetch it (hf download {CLIP_L if Path(tower).is_absolute() else tower}) or set mm_vision_tower in"
            f" {folder / 'config.json'} to its folder"
        ) from error
