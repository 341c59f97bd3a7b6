"""A checkpoint folder: whether it is whole, and its model and processor.

Preprocessing is PIL's on every machine: the torchvision-backed variants differ by up to 0.03 in normalised pixels.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from harness.base import UserError


def verify(folder: str | Path) -> Path:
    """Return ``folder`` if it holds a whole checkpoint: configuration, and weight files that open.

    Pickles (pytorch_model.bin, as some checkpoints are published) are taken only where there are no safetensors, and opened
    without running what is in them.

    Raises:
        UserError: naming the file that is missing, truncated or damaged, or that has code in it.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'} is missing: {folder} is not a Hugging Face checkpoint folder")
    weights, index = sorted(folder.glob("*.safetensors")), folder / "model.safetensors.index.json"
    if not weights and not index.is_file():
        weights, index = sorted(folder.glob("pytorch_model*.bin")), folder / "pytorch_model.bin.index.json"
    if index.is_file():
        try:
            listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError) as error:
            raise UserError(f"{index} is damaged ({type(error).__name__}: {error})") from error
        absent = sorted(listed - {path.name for path in weights})
        if absent:
            raise UserError(f"{folder / absent[0]} is missing, but {index.name} lists it")
    elif weights and weights[0].suffix == ".bin" and weights[0].name != "pytorch_model.bin":
        raise UserError(f"{index} is missing: {folder} holds parts of a model, and nothing says which parts there are")
    if not weights:
        raise UserError(f"{folder / 'model.safetensors'} is missing: the checkpoint has no weights")
    for path in weights:
        _open(path)
    return folder


def _open(path: Path) -> None:
    """Open a weight file without reading its weights."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt"):
                return
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is truncated or damaged ({error})") from error
    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is a pickle with code in it, which is never run; get the weights as safetensors, or convert them on a"
            " machine that may run that code"
        ) from error  # torch's own reason advises to run it
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def _processor(library: Any, folder: Path) -> Any:
    """Return a checkpoint's processor with PIL's preprocessing of images."""
    try:
        return library.AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
    # asked of the whole processor, PIL is asked of a video part too, which has no such variant; transformers 5.17 says it so
    except (ImportError, AttributeError):
        processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True)
        processor.image_processor = library.AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        return processor


def load(folder: Path, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """Return model and processor of a checkpoint folder; see :func:`verify` for the errors."""
    import transformers

    verify(folder)
    library: Any = transformers  # its annotations say less than its documentation
    bars = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()  # one bar per student would tear the command's own
    try:
        model, report = library.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True, weights_only=True
        )
        processor = _processor(library, folder)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{folder} cannot be loaded as an image-text-to-text checkpoint ({type(error).__name__}: {_reason(error)})"
        ) from error
    finally:
        if bars:
            library.utils.logging.enable_progress_bar()
    if report["missing_keys"]:
        raise UserError(f"{folder} lacks the weights {', '.join(sorted(report['missing_keys'])[:3])}")
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"{folder}: the processor has no chat template (chat_template.jinja), so prompts cannot be rendered")
    return model, processor
