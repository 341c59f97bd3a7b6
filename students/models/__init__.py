"""Model families behind one adapter; one file a family, chosen by the checkpoint's ``model_type``."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import UnknownName, unknown

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
        UserError: naming the folder and the remedy, when it holds no whole checkpoint, or one of a family that is not known.
    """
    import torch

    from students.models._load import configuration

    folder = Path(folder)
    config = configuration(folder)
    kind = config["model_type"]
    if kind not in families():
        remote = f" {folder} brings code of its own for it, which is never run." if "auto_map" in config else ""
        raise UnknownName(f"{folder / 'config.json'}: {unknown('model type', kind, families())}.{remote}")
    adapter: Adapter = importlib.import_module(families()[kind]).ADAPTER.load(folder, device, dtype or torch.float32)
    return adapter


def wrap(model: Any, processor: Any) -> Adapter | None:
    """Return the adapter of a model that transformers' Auto classes loaded, or None for a family that is not known here."""
    module = families().get(model.config.model_type)
    if module is None:
        return None
    adapter: Adapter = importlib.import_module(module).ADAPTER(model, processor)
    return adapter


def register() -> None:
    """Make the families that transformers does not know loadable by its Auto classes in this process."""
    for module in families().values():
        own = getattr(importlib.import_module(module), "register", None)
        if own is not None:
            own()
