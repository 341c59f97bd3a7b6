"""The rows of a corpus once: as tokens, and as decoded pictures; caches that every training of the corpus maps.

A stage's places: ``corpus`` and ``images`` as in harness/stages/student.py; for tokens ``base``, whose processor makes them,
and ``pictures`` where those are kept. Its config: ``corpus``, and for tokens ``template`` where the trainings name one. Its
``choice``: whether the plan holds it to a bound (``bounded``). Nothing that uses one depends on it: see harness/rows_plan.py.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.base import read_json, write_json
from harness.caching import GB, Planned
from harness.stages import corpus as corpora
from harness.worth import of_free

if TYPE_CHECKING:
    from harness.plan import Stage
    from harness.workers import Context
    from students.data.conversations import Corpus

#: Raise when the same configuration would give other files.
STAGE_VERSION = 1

KIND = "encode"
TOKENS_PLANS, PICTURES_PLANS = "harness.stages.rows:planned_tokens", "harness.stages.rows:planned_pictures"
WHY = "why.json"
#: An image's tokens where no file says how many: the most that Qwen2-VL makes as published.
_IMAGE_TOKENS = 16_384
_MOBILEVLM_TOKENS = 144
#: Bytes a token (its id, and whether it is learnt), an image (its place), a row (its places), and of file headers.
_TOKEN, _IMAGE, _ROW, _HEADERS = 5, 4, 16, 4096
#: Tokens round an image or a tile of one beyond its features: marks, a line break, its place in digits.
_ROUND = 40
#: Bytes of a picture's name, sides and offset.
_PER_PICTURE = 300
#: Families whose format is in their code, and tokens that it adds at most: Vicuna's sentence, and a turn's words.
_BUILT_IN, _V1 = ("mobilevlm", "tinyllava"), 400


def tokens_target(label: str) -> str:
    """Return where a corpus's tokens lie, relative to the run folder."""
    return f"encoded/corpora/{label}"


def pictures_target(corpus: str) -> str:
    """Return where a corpus's decoded pictures lie, relative to the run folder."""
    return f"encoded/pictures/{corpus}"


def tokens(context: Context) -> None:
    """Write ``encoded/corpora/LABEL``: see :func:`students.data.tokenised.write`."""
    from harness.base import UserError
    from harness.stages.student import use_torch
    from students import models
    from students.data import tokenised
    from students.feed_stream import speak

    out = context.out(context.stage.targets[0])
    if not _begins(context, out, tokens_bytes(context.root, context.stage)):
        return
    use_torch(context)
    rows, adapter = opened(context), models.load(context.place("base"))
    if context.config.get("template") is not None:
        speak(adapter, context.config["template"])
    try:
        tokenised.key(adapter, rows)
    except UserError as error:  # such a reader's rows are made whenever one is read, which is no fault of anybody's
        leave(out, str(error))
        return
    tokenised.write(rows, adapter, out, context.progress)


def pictures(context: Context) -> None:
    """Write ``encoded/pictures/NAME``: see :func:`students.data.decoded.write`."""
    from students.data import decoded
    from students.data.corpus import IndexedCorpus

    out = context.out(context.stage.targets[0])
    if not _begins(context, out, pictures_bytes(context.root, context.stage)):
        return
    images = context.place("images") if "images" in context.stage.places else None
    decoded.write(IndexedCorpus(context.place("corpus"), images), out, context.progress)


def _begins(context: Context, out: Path, size: int | None) -> bool:
    """Say whether a cache fits; where it does not, write why in its place."""
    why = None if size is None else _too_much(context.root, context.stage, size)
    if why is not None:
        leave(out, why)
    return why is None


def leave(out: Path, why: str) -> None:
    """Write in a cache's place why there is none."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / WHY, {"why": why})


def opened(context: Context) -> Corpus:
    """Open the corpus of a stage, with its decoded pictures where they are stored."""
    from students.data.corpus import IndexedCorpus
    from students.data.decoded import Decoded

    places = context.stage.places
    found = IndexedCorpus(context.place("corpus"), context.place("images") if "images" in places else None)
    return Decoded(found, context.place("pictures")) if "pictures" in places else found


def place_of_tokens(context: Context) -> Path | None:
    """Return where the corpus's tokens are stored for a stage, or None."""
    return context.place("tokens") if "tokens" in context.stage.places else None


# ---- before anything is written --------------------------------------------------------------------------------------------


def planned_tokens(root: Path, stage: Stage) -> Planned:
    """Return what a stage of tokens writes at most."""
    return _planned(root, stage, "tokens int32", tokens_bytes(root, stage))


def planned_pictures(root: Path, stage: Stage) -> Planned:
    """Return what a stage of pictures writes at most."""
    return _planned(root, stage, "pictures uint8", pictures_bytes(root, stage))


def _planned(root: Path, stage: Stage, form: str, size: int | None) -> Planned:
    why = None if size is None else _too_much(root, stage, size)
    return Planned(form, size) if why is None else Planned("nothing", _HEADERS, why)


def _too_much(root: Path, stage: Stage, size: int) -> str | None:
    """Say why a cache is not kept, where no bound but the disk's is set."""
    limit, named = of_free(root)
    if stage.choice.get("bounded") or size <= limit:
        return None
    return f"{size / GB:,.3g} GB are more than {named}, {limit / GB:,.3g} GB"


def facts(root: Path, stage: Stage) -> dict[str, Any] | None:
    """Return what the corpus of a stage says of itself; None before it is there."""
    path = root / corpora.target(stage.config["corpus"]) / "corpus.json"
    return dict(read_json(path)) if path.is_file() else None


def pictures_bytes(root: Path, stage: Stage) -> int | None:
    """Return the bytes of a corpus's pictures, at most; None as long as that is not known."""
    found = facts(root, stage)
    if found is None or found.get("sizes") is None:
        return None
    return int(_HEADERS + found["sizes"]["pixels"] + _PER_PICTURE * found["images"])


def tokens_bytes(root: Path, stage: Stage) -> int | None:
    """Return the bytes of a corpus's tokens, at most: a token a byte of text; None as long as that is not known."""
    found, base = facts(root, stage), root / stage.places["base"]
    if found is None or found.get("sizes") is None or not (base / "config.json").is_file():
        return None
    sizes, rows = found["sizes"], found["rows"]
    template, image = _template(base), _image_tokens(base)
    said = sizes["text"] + (2 * sizes["turns"] + sizes["shown"]) * template + sizes["shown"] * (image + _ROUND)
    return int(_HEADERS + _TOKEN * said + _IMAGE * sizes["shown"] + _ROW * (rows + 1))


def _template(folder: Path) -> int:
    """Return how many tokens a chat template adds to a message at most: the bytes of its text, marks counted as one."""
    if read_json(folder / "config.json").get("model_type") in _BUILT_IN:
        return _V1
    for name in ("chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8") if path.suffix == ".jinja" else read_json(path).get("chat_template")
        if isinstance(text, str):
            code = r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}"
            plain = re.sub(code, "", text, flags=re.DOTALL)
            quoted = "".join(
                a or b for part in re.findall(code, text, re.DOTALL) for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", part)
            )
            return len(re.sub(r"<\|\w+\|>|<image>", "x", plain + quoted).encode()) + 2
    return _V1


def _image_tokens(folder: Path) -> int:
    """Return how many tokens an image takes at most, as far as a checkpoint's configuration says it."""
    config = read_json(folder / "config.json")
    if config.get("model_type") == "mobilevlm":
        return _MOBILEVLM_TOKENS
    processor = _settings(folder)
    pictures = {**processor, **(processor.get("image_processor") or {})}
    size, vision = pictures.get("size") or {}, config.get("vision_config") or {}
    side, patch = vision.get("image_size"), vision.get("patch_size")
    if pictures.get("merge_size") and pictures.get("patch_size"):
        most = size.get("longest_edge") or pictures.get("max_pixels")
        return _IMAGE_TOKENS if not most else math.ceil(most / (pictures["patch_size"] * pictures["merge_size"]) ** 2) + _ROUND
    if processor.get("image_seq_len") and size.get("longest_edge") and pictures.get("max_image_size"):
        tiles = math.ceil(size["longest_edge"] / pictures["max_image_size"]["longest_edge"]) ** 2 + 1
        return int(tiles * (processor["image_seq_len"] + _ROUND))
    if not (isinstance(side, int) and isinstance(patch, int)):
        return _IMAGE_TOKENS
    each, across = (side // patch) ** 2 + 1, side // patch
    grids = config.get("image_grid_pinpoints") or []
    tiles = max((math.ceil(height / side) * math.ceil(width / side) for height, width in grids), default=0)
    return each + tiles * (each + across)


def _settings(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint says of its processor, in one file or two."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found |= read_json(folder / name)
    return found
