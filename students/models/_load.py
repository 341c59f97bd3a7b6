"""Checkpoint folders: whole or not, and read without ever running code that they bring."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness.base import UserError, read_json
from students.shortage import is_shortage

_AGAIN = "download it again"
#: Weights in the order in which transformers looks for them.
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def configuration(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json.

    Raises:
        UserError: naming the folder, when it is no checkpoint.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; expected a checkpoint: config.json, weights and processor files")
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(f"{folder} holds a LoRA adapter and no model; merge it into its base model and save that")
        raise UserError(f"{folder} is no checkpoint: it has no config.json")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder / 'config.json'} names no model_type, so this is no checkpoint of transformers; {_AGAIN}")
    return config


def weights(folder: Path) -> tuple[Path, ...]:
    """Return a folder's weight files, safetensors before pickles, after a look at whether they are whole.

    Raises:
        UserError: naming the file that is missing, truncated or a pointer to one, and what to do.
    """
    for name in INDICES:
        if (folder / name).is_file():
            files = _listed(folder, name)
            break
        whole = folder / name.removesuffix(".index.json")
        if whole.is_file():
            files = (whole,)
            break
    else:
        partial = sorted(folder.glob("*.incomplete")) + sorted(folder.glob("*-of-*"))
        hint = f"; {partial[0].name} is part of a download that did not end" if partial else ""
        raise UserError(f"{folder} has no weights (model.safetensors or pytorch_model.bin){hint}; {_AGAIN}")
    for file in files:
        _whole(file)
    return files


def _listed(folder: Path, name: str) -> tuple[Path, ...]:
    index = read_json(folder / name)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{folder / name} lists no weights; {_AGAIN}")
    files = tuple(folder / shard for shard in sorted(set(map(str, table.values()))))
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise UserError(
            f"{folder} is half a download: {name} lists {len(files)} files and {len(absent)} of them are missing, the first is"
            f" {absent[0]}; {_AGAIN}"
        )
    return files


def _whole(file: Path) -> None:
    with file.open("rb") as opened:
        head = opened.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{file} is a git-lfs pointer and not the file itself; run `git lfs pull` in its folder")
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is truncated or damaged ({error}); {_AGAIN}") from error
    elif not head:
        raise UserError(f"{file} is empty; {_AGAIN}")


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Turn what transformers and torch say about a folder that they cannot read into one :class:`UserError` with a remedy."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    try:
        yield
    except UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise UserError(f"{folder} holds a damaged pickle; {_AGAIN}") from error
        raise UserError(
            f"{folder} holds a pickle with code in it ({asked[1]}), which is never run; convert it to safetensors where you"
            " trust it"
        ) from error
    except ImportError as error:
        raise UserError(f"{folder} needs a package that is not installed ({_line(error)})") from error
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        if is_shortage(error):  # says nothing about the folder, and is explained where the batch is known
            raise
        raise UserError(f"{folder} is not a whole checkpoint ({type(error).__name__}: {_line(error)}); {_AGAIN}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from printing its own tables and bars about what is raised as one line."""
    import transformers

    logging: Any = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


def pretrained(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load model and processor with transformers' own classes.

    Args:
        folder: the checkpoint.
        dtype: of the weights.

    Raises:
        UserError: naming the folder and what to do.
    """
    import transformers

    library: Any = transformers  # its annotations say less than its documentation
    config = configuration(folder)
    weights(folder)
    with explained(folder), quiet():
        model, report = library.AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, weights_only=True,
            output_loading_info=True, ignore_mismatched_sizes=True,  # reported below, by name
        )  # fmt: skip
        processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if getattr(processor, "image_processor", None) is not None:
            # PIL's on every machine, as evaluation has it; asked of the whole processor, it is asked of the video part too,
            # which has none
            processor.image_processor = library.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, backend="pil", trust_remote_code=False
            )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(f"{folder} lacks {len(missing)} weight(s): {', '.join(missing[:3])} ...; {_AGAIN}")
    if report.get("mismatched_keys"):
        wrong = sorted(str(key[0]) if isinstance(key, tuple) else str(key) for key in report["mismatched_keys"])
        raise UserError(f"{folder} has weights of another shape than its config.json says: {', '.join(wrong[:3])}; {_AGAIN}")
    if getattr(processor, "tokenizer", None) is None or getattr(processor, "image_processor", None) is None:
        raise UserError(
            f"{folder} has no processor for {config['model_type']} (preprocessor_config.json and tokenizer files); copy them"
            " from where the weights come from"
        )
    if getattr(processor, "chat_template", None) is None:
        raise UserError(f"{folder} has no chat template (chat_template.jinja); copy it from where the weights come from")
    return model, processor
