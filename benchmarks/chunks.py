"""What the sizes of chunks and of blocks cost: ``python benchmarks/chunks.py``, two minutes of one core, 2 GB, no network.

The head and the losses behind it alone, on random states: with logits a chunk at a time (students/head.py, against memory that
grows with tokens x vocabulary) and with an energy's work a block at a time (students/batch.py, for the processor's cache).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # both before torch is imported: its profiler logs every start and stop
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import typer
from rich.console import Console

import result_file
from harness import base, cli

COMMAND = "benchmarks/chunks.py"
RECIPES = ("ce+fkl", "ce+js")
#: Powers of two: logits at once, and logits that an energy takes at once; the last of each is "all".
CHUNKS, BLOCKS = (20, 21, 22, 23, 40), (14, 16, 18, 20, 22, 40)
TEXT = (
    "Head and losses alone, forward and backward pass: {tokens} tokens, V = {vocabulary:,}, width {width}, float32, one thread."
    " Processor seconds (median and quartiles of {rounds} rounds, sizes in turn) and MiB allocated at once. Gap: largest"
    " difference of the states' gradients to those of all at once, as a share of the largest."
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
console = Console()
Rounds = Annotated[int, typer.Option("--rounds", min=1, help="Timed passes of each size.")]
Tiny = Annotated[bool, typer.Option("--tiny", help="A small head: the same code in seconds.")]
Out = Annotated[Path, typer.Option("--out", help="JSON file; the table goes beside it as Markdown.")]


@app.command(help=__doc__)
def chunks(rounds: Rounds = 3, tiny: Tiny = False, out: Out = Path("runs/benchmarks/chunks.json")) -> None:
    """Measure, print and write."""
    result_file.check(out)
    base.offline()
    base.shim()
    import torch

    import measuring
    from students import batch, stored

    torch.set_num_threads(1)
    size = {"tokens": 20, "vocabulary": 50, "width": 8} if tiny else {"tokens": 460, "vocabulary": 32000, "width": 384}
    scale = 11 if tiny else 0  # so that the small head is cut too
    command = " ".join(["python", COMMAND, *sys.argv[1:]])
    result: dict[str, Any] = {"command": command, **measuring.machine(), **size, "rounds": rounds}
    result["chunks"] = [
        _measure(_case(recipe, size), rounds, [1 << max(6, power - scale) for power in CHUNKS], None) for recipe in RECIPES
    ]
    usual = batch.BLOCK
    try:
        result["blocks"] = [
            _measure(_case(recipe, size), rounds, [1 << max(5, power - scale) for power in BLOCKS], batch) for recipe in RECIPES
        ]
    finally:
        batch.BLOCK = usual
    result |= {"usual_chunk": stored.LIMIT, "usual_block": usual}
    page = _page(result)
    base.write_json(out, result)
    base.write_text(out.with_suffix(".md"), page)
    console.print(page, markup=False, highlight=False, soft_wrap=True)


def _case(recipe: str, size: dict[str, int]) -> Callable[[int], Any]:
    """Return what makes one pass with so many logits at once; it returns the states' gradients."""
    import contextlib

    import torch

    from students.head import Head
    from students.losses import Losses
    from students.recipe import Variant, parse

    draw = torch.Generator().manual_seed(0)
    tokens, vocabulary, width = size["tokens"], size["vocabulary"], size["width"]
    states = torch.randn(tokens, width, generator=draw)
    projection = torch.nn.Linear(width, vocabulary, bias=False)
    teacher = 3 * torch.randn(tokens, vocabulary, generator=draw)
    labels, sample = torch.randint(vocabulary, (tokens,), generator=draw), torch.arange(tokens) // 10
    batch: Any = SimpleNamespace(labels=labels, sample=sample, indices=range(int(sample[-1]) + 1))
    adapter: Any = SimpleNamespace(vocabulary_size=vocabulary, head=projection)
    said: Any = SimpleNamespace(logits=teacher, taps=None)
    losses = Losses(parse(recipe), Variant(), {}, vocabulary)

    def work(limit: int) -> Any:
        given = states.clone().requires_grad_()
        found = Head(adapter, losses, contextlib.nullcontext, (), limit)(given, batch, said, False)
        torch.stack([values.mean() for values in found.losses.by_channel.values()]).sum().backward()
        projection.zero_grad(set_to_none=True)
        return given.grad

    return work


def _measure(work: Callable[[int], Any], rounds: int, sizes: list[int], blocks: Any) -> list[dict[str, Any]]:
    """Return a row per size: of chunks, or with the module ``blocks`` of its blocks, all logits at once."""
    import measuring

    everything = 1 << 62

    def once(size: int) -> Any:
        if blocks is None:
            return work(size)
        blocks.BLOCK = size
        return work(everything)

    expected = once(everything)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(rounds + 1):
        for size in sizes:
            took = measuring.processor_seconds(partial(once, size))
            if number:
                seconds[size].append(took)
    rows = []
    for size in sizes:
        gap = float((once(size) - expected).abs().max() / expected.abs().max())
        peak = measuring.peak_bytes(partial(once, size))
        rows.append({"size": size, "seconds": measuring.spread(seconds[size]), "peak_bytes": peak, "gap": gap})
    return rows


def _page(result: dict[str, Any]) -> str:
    """Lay the result out."""
    import measuring

    parts = ["# Chunks and blocks", measuring.where(result["command"], result), TEXT.format(**result)]
    for title, name in (("Logits at once, in chunks", "chunks"), ("Logits that an energy takes at once, in blocks", "blocks")):
        header = [title, *(f"{recipe}: {column}" for recipe in RECIPES for column in ("s", "MiB", "gap"))]
        rows = []
        for line in zip(*result[name], strict=True):
            size = line[0]["size"]
            whole = size >= result["tokens"] * result["vocabulary"]
            cells = ["all" if whole else f"2^{size.bit_length() - 1}, {max(1, size // result['vocabulary'])} tokens"]
            for each in line:
                cells.append("{median:.2f} ({low:.2f} - {high:.2f})".format(**each["seconds"]))
                cells += [f"{each['peak_bytes'] / measuring.MIB:,.0f}", f"{each['gap']:.0e}"]
            rows.append(cells)
        parts.append(measuring.table(header, rows))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    cli.main(app, COMMAND)
