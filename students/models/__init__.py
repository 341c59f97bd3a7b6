"""Model families behind one adapter; one file a family, chosen by the checkpoint's ``model_type``."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base import UserError, read_json, unknown

if TYPE_CHECKING:
    import torch

    from students.models._base import Adapter


def families() -> dict[str, str]:
    """Return the module of each family file in this folder, by the ``MODEL_TYPE`` that it is named after.

    Names that start with an underscore are helpers.
    """
    names = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.name.startswith("_")]
    return {name: f"students.models.{name}" for name in names}


def load(folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Adapter:
    """Load a checkpoint folder with the adapter of its model type, in float32 unless ``dtype`` says otherwise.

    Raises:
        UserError: when the folder holds no readable checkpoint, or one of a family that is not known.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no checkpoint: it has no config.json")
    kind = str(read_json(folder / "config.json").get("model_type"))
    if kind not in families():
        raise unknown("model type", kind, families())
    import torch

    adapter: Adapter = importlib.import_module(families()[kind]).ADAPTER.load(folder, device, dtype or torch.float32)
    return adapter
