"""``python -m harness.score``: score saved replies again under one or more protocols. No model, and no network to score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from harness import cli
from harness.base import UserError, offline

MODULE = "harness.score"
_HELP = """Score saved replies under one or more protocols, with no model.

Replies: JSON lines or JSON with an id (id, question_id, pid, index) and a reply (reply, prediction, text, answer), CSV or TSV
with such a header, MME's folder of result files, or lmms-eval's saved samples. Gold answers: the files of the benchmark itself
with --gold, a folder of data sets with --data-root, else the Hugging Face hub.

Examples:

  python -m harness.score --protocol textvqa@ocr --replies answers.jsonl --gold TextVQA_0.5.1_val.json

  python -m harness.score --protocol pope@mean-f1 --replies answers.jsonl --gold coco_pope/ --partial

  python -m harness.score --protocol mme@perception --protocol mme@cognition --replies LaVIN/ --gold Your_Results/

  python -m harness.score --protocol mmbench@vanilla --protocol mmbench@circular --replies mmbench.tsv --data-root data/

  python -m harness.score --list
"""
app = typer.Typer(add_completion=False, rich_markup_mode=None)

Protocols = Annotated[list[str] | None, typer.Option("--protocol", help="benchmark@protocol, see --list; repeatable: the gap.")]
RepliesFile = Annotated[Path | None, typer.Option("--replies", help="A file of replies, or MME's folder of result files.")]
GoldFile = Annotated[Path | None, typer.Option("--gold", help="The benchmark's own gold file, or folder of files.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write one row per question: .csv, .tsv, .jsonl or .parquet.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON and nothing else.")]
Partial = Annotated[bool, typer.Option("--partial", help="Score what is there, and say PARTIAL on every line.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="A folder with the data sets (docs/data_root.md).")]
Examples = Annotated[int, typer.Option("--limit-examples", help="Show at most N unparseable replies of each protocol.")]
Offline = Annotated[bool, typer.Option("--offline", help="Reach no network, not even for the gold answers.")]
ListAll = Annotated[bool, typer.Option("--list", help="Show every protocol with its description.")]


@app.command(help=_HELP)
def score(
    protocol: Protocols = None,
    replies: RepliesFile = None,
    gold: GoldFile = None,
    out: Out = None,
    as_json: AsJson = False,
    partial: Partial = False,
    data_root: DataRoot = None,
    limit_examples: Examples = 3,
    no_network: Offline = False,
    list_all: ListAll = False,
) -> None:
    """Parse the command line and score."""
    import tasks
    from harness import rescoring

    if list_all:
        from harness.listing import show_protocols

        show_protocols(cli.console)
        return
    if not protocol:
        raise UserError("--protocol is missing: name one of --list, such as --protocol pope@mean-f1")
    if replies is None:
        raise UserError("--replies is missing: name a file of replies, or MME's folder of result files")
    if limit_examples < 0:
        raise UserError(f"--limit-examples is {limit_examples}; allowed: 0 or more")
    chosen = [tasks.protocol(name) for name in dict.fromkeys(protocol)]
    benchmarks = sorted({each.benchmark for each in chosen})
    if len(benchmarks) > 1:
        raise UserError(f"--protocol names {' and '.join(benchmarks)}: one file of replies answers one benchmark")
    if out is not None:
        rescoring.check_out(out)
    if no_network or gold is not None or data_root is not None:
        offline()
    results = [rescoring.rescore(each, replies, gold, data_root, partial) for each in chosen]
    if out is not None:
        rescoring.write_rows(out, results)
    if as_json:
        records = [rescoring.record(result) for result in results]
        typer.echo(json.dumps(records[0] if len(records) == 1 else records, allow_nan=False))
        return
    stamp = "PARTIAL " if partial else ""
    text = [line for result in results for line in rescoring.lines(result, limit_examples)]
    text += rescoring.gap(results)
    text += [f"rows: {out}"] if out is not None else []
    for line in text:
        cli.console.print(f"{stamp}{line}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    cli.main(app, MODULE)
