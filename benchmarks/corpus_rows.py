"""What stored tokens and pictures save a training of a corpus: ``python benchmarks/corpus_rows.py``, a few minutes on one core.

Rows of about a hundred words in two turns, each about a JPEG of 640 x 480, as a LLaVA reads them: a byte-level vocabulary that
is trained here, CLIP's preprocessing to 336 pixels, 576 tokens an image. Rows are prepared as a training prepares them (read,
tokenised, preprocessed and padded into batches), in turns: as ever, with stored tokens, and with stored tokens and pictures;
and the same with random features of the tower in the place of images, and of rows without images. Processor time, one thread,
medians of several rounds. Nothing is learned, and the model behind the processor is as small as can be.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from harness.base import shim, write_json
from students.data import corpus, decoded, tokenised
from students.data.conversations import Conversation, Picture, Turn
from students.data.truncation import take

SIDE, PATCH, FEATURES, PER_STEP = 336, 14, (577, 1024), 8
WORDS = (
    "the", "a", "of", "and", "to", "in", "it", "red", "car", "road", "dog", "chair", "window", "under", "above", "near", "two",
    "three", "people", "standing", "bright", "small",
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ p['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)

console = Console()
Rows = Annotated[int, typer.Option("--rows", min=PER_STEP, help="Rows of a round.")]
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Rounds, of which the median is taken.")]
Out = Annotated[Path, typer.Option("--out", help="JSON file with the numbers.")]


class Featured:
    """A corpus whose images are features, read from a mapped file as students/vision/store.py does."""

    def __init__(self, rows: Any, folder: Path) -> None:
        self.rows, self.shows = rows, rows.shows
        path = folder / "features.npy"
        np.save(path, np.random.default_rng(0).standard_normal((16, *FEATURES), np.float32))
        self._features = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:
        found: Conversation = self.rows[index]
        return found

    def picture(self, key: str) -> Picture:
        """Read features [n, C]."""
        return torch.from_numpy(np.array(self._features[int(key[:-4]) % len(self._features)]))


def main(rows: Rows = 64, rounds: Rounds = 7, out: Out = Path("runs/benchmarks/corpus_rows.json")) -> None:
    """Prepare the same rows in every way by turns, and compare."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reader = adapter()
        cases: dict[str, Callable[[], None]] = {}
        once: dict[str, float] = {}
        for kind, share in (("images", 1.0), ("text alone", 0.0)):
            plain, kept, shown = made(folder / kind.replace(" ", "-"), reader, rows, share, once)
            cases[f"{kind}: as ever"] = prepare(reader, plain, None)
            cases[f"{kind}: stored tokens"] = prepare(reader, plain, kept)
            if share:
                cases[f"{kind}: stored tokens and pictures"] = prepare(reader, shown, kept)
                features = Featured(plain, folder)
                cases["features: as ever"] = prepare(reader, features, None)
                cases["features: stored tokens"] = prepare(reader, features, kept)
        taken: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(rounds + 1):
            for case, work in cases.items():
                taken[case].append(seconds(work))
        medians = {case: statistics.median(found[1:]) for case, found in taken.items()}  # the first round warms up
    write_json(out, {"rows": rows, "rounds": rounds, "seconds": medians, "once": once})
    console.print(table(medians, once, rows))


def adapter() -> Any:
    """Build a LLaVA as small as can be behind a processor of the published sizes."""
    shim()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers import PreTrainedTokenizerFast as Fast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from students.models.llava import LlavaAdapter

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([" ".join(WORDS)], trainer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "extra_special_tokens": ["<image>"]}
    tokenizer = Fast(tokenizer_object=inner, chat_template=TEMPLATE, **special)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=PATCH
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, vision_feature_layer=-1)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = LlavaProcessor(
        pictures, tokenizer, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )  # fmt: skip
    return LlavaAdapter(LlavaForConditionalGeneration(config), processor)


def made(folder: Path, reader: Any, rows: int, share: float, once: dict[str, float]) -> tuple[Any, Any, Any]:
    """Write a corpus and its caches; note the seconds that these take, once for all trainings."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    with corpus.IndexWriter(folder / "index", "rows") as writer:
        for number in range(rows):
            shown = number < share * rows
            if shown:
                small = noise.integers(0, 256, (48, 64, 3), np.uint8)
                Image.fromarray(small).resize((640, 480)).save(folder / "images" / f"{number}.jpg", quality=90)
            said = [" ".join(rng.choices(WORDS, k=k)) for k in (12, 40, 12, 40)]
            turns = (Turn(f"<image>\n{said[0]}" if shown else said[0], said[1]), Turn(said[2], said[3]))
            writer.add(Conversation(str(number), "rows", (f"{number}.jpg",) if shown else (), turns))
    count = int(share * rows)
    facts = corpus.Facts(
        name="rows", format="llava", digest="0", source_rows=rows, rows=rows, rows_with_image=count, images=count
    )
    corpus.finish(folder / "index", facts)
    plain = corpus.IndexedCorpus(folder / "index", folder / "images")
    kind = "images" if share else "text alone"
    once[f"{kind}: tokens"] = seconds(lambda: tokenised.write(plain, reader, folder / "tokens", lambda *_: None))
    once[f"{kind}: pictures"] = seconds(lambda: decoded.write(plain, folder / "pictures", lambda *_: None))
    kept = tokenised.Tokenised(folder / "tokens", tokenised.key(reader, plain))
    return plain, kept, decoded.Decoded(plain, folder / "pictures")


def prepare(reader: Any, rows: Any, kept: Any) -> Callable[[], None]:
    """Return what prepares all rows once."""

    def work() -> None:
        for start in range(0, len(rows), PER_STEP):
            indices = range(start, min(start + PER_STEP, len(rows)))
            taken = [take(rows, reader, index, 2048, tokens=kept) for index in indices]
            reader.collate([each.row for each in taken], tuple(indices))

    return work


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of doing something."""
    started = time.process_time()
    work()
    return time.process_time() - started


def table(medians: dict[str, float], once: dict[str, float], rows: int) -> Table:
    """Return the numbers for people."""
    found = Table("rows", "ms a row", "rows/s", "as ever / this")
    for case, value in medians.items():
        before = medians[f"{case.partition(':')[0]}: as ever"]
        found.add_row(case, f"{1000 * value / rows:.2f}", f"{rows / value:,.0f}", f"{before / value:.2f}")
    for case, value in once.items():
        if value > 0 and not case.startswith("text alone: pictures"):
            found.add_row(f"{case}, once", f"{1000 * value / rows:.2f}", f"{rows / value:,.0f}", "")
    return found


if __name__ == "__main__":
    typer.run(main)
