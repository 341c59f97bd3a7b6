"""Models from the Hugging Face hub: fetched once, before anything else, into the hub's own cache."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from harness.base import UserError

#: What a checkpoint folder is made of, weights aside.
_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
_SAFETENSORS = ("*.safetensors",)
#: Fetched only where a repository has no safetensors; they are read without running what is in them.
_PICKLED = ("pytorch_model.bin", "pytorch_model-*.bin")


def fetch(model: str) -> Path:
    """Return the folder of a hub's model, downloading what is missing; call it before :func:`harness.base.offline`.

    Raises:
        UserError: when the hub cannot be reached, has no such model, or the model has no weights of a known format.
    """
    return _snapshot(model, local=False)


def cached(model: str) -> Path:
    """Return the folder of a hub's model that is on this machine.

    Raises:
        UserError: when it is not.
    """
    return _snapshot(model, local=True)


def _snapshot(model: str, local: bool) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        weights = (*_SAFETENSORS, *_PICKLED) if local else _weights(model, huggingface_hub.list_repo_files(model))
        wanted = [*_FILES, *weights]
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=wanted, local_files_only=local))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = "is neither a folder nor a Hugging Face model on this machine" if local else "cannot be fetched from the hub"
        raise UserError(f"model {model!r} {what} ({reason})") from error


def _weights(model: str, files: list[str]) -> tuple[str, ...]:
    """Choose the format to fetch."""

    def has(patterns: tuple[str, ...]) -> bool:
        return any(fnmatch.filter(files, pattern) for pattern in patterns)

    if has(_SAFETENSORS):
        return _SAFETENSORS
    if has(_PICKLED):
        return _PICKLED
    held = ", ".join(sorted({Path(file).suffix for file in files if Path(file).suffix}))
    raise UserError(
        f"model {model!r}: the hub's repository has no weights that are read here (*.safetensors or pytorch_model*.bin);"
        f" it has files of the kinds {held or 'none'}"
    )
