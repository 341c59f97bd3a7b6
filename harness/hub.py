"""Models from the Hugging Face hub: fetched once, before anything else, into the hub's own cache."""

from __future__ import annotations

from pathlib import Path

from harness.base import UserError

#: What a checkpoint folder is made of; weights in other formats are not loaded here.
_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


def fetch(model: str) -> Path:
    """Return the folder of a hub's model, downloading what is missing; call it before :func:`harness.base.offline`.

    Raises:
        UserError: when the hub cannot be reached, or has no such model.
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
        return Path(huggingface_hub.snapshot_download(model, allow_patterns=list(_FILES), local_files_only=local))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = "is neither a folder nor a Hugging Face model on this machine" if local else "cannot be fetched from the hub"
        raise UserError(f"model {model!r} {what} ({reason})") from error
