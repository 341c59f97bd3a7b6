"""What the commands share: exit codes, one-line errors, and the command line that continues an interrupted one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

from harness.base import UserError
from harness.execute import DiskFull, StageError

DONE, GATE_FAILED, BAD_INPUT, INCONCLUSIVE, FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 130

#: click's UsageError: Typer carries a copy of click, or uses the installed one, depending on its version.
_USAGE: type[BaseException] = typer.BadParameter.__mro__[1]


class Said(Exception):
    """The command is over with the exit code ``code``, and another process of it has said why."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.code = code


console = Console()
errors = Console(stderr=True)


def own_packages_first() -> None:
    """Drop the current directory from the import path when this project is not in it.

    ``python -m`` puts it first, so that a folder ``students/`` lying there would be imported instead of ours.
    """
    here, home = Path.cwd().resolve(), Path(__file__).resolve().parents[1]
    if here != home:
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]


def command_line(module: str, arguments: list[str]) -> str:
    """Return the command as the user may type it again."""
    return shlex.join(["python", "-m", module, *arguments])


def say_error(text: str) -> None:
    """Print one line to stderr."""
    line = " ".join(text.split())
    errors.print(f"error: {line}", style="bold red", soft_wrap=True, highlight=False, markup=False)


def main(app: Any, module: str) -> NoReturn:
    """Run a Typer ``app`` and turn whatever happens into an exit code: see DESIGN, "Exit codes"."""
    own_packages_first()
    again = command_line(module, sys.argv[1:])
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        say_error(str(error))
        sys.exit(BAD_INPUT)
    except _USAGE as error:
        message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
        say_error(f"{message.rstrip('.')}. Try: python -m {module} --help")
        sys.exit(BAD_INPUT)
    except Said as end:
        sys.exit(end.code)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit:  # Typer and rich end a broken pipe with 1, which here means that the gate failed
        code = FAILED
    except DiskFull as error:  # its place in the code says nothing
        say_error(str(error))
        errors.print(f"to continue: {again}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(FAILED)
    except StageError as error:
        if error.trace:  # a process that was killed leaves none
            errors.print(error.trace, soft_wrap=True, highlight=False, markup=False)
        say_error(str(error))
        errors.print(f"what is complete is kept; to try again: {again}", soft_wrap=True, highlight=False, markup=False)
        sys.exit(FAILED)
    except Exception as error:  # noqa: BLE001 - the program failed: the traceback, one line, and exit code 4
        errors.print_exception()
        say_error(f"{type(error).__name__}: {error}")
        sys.exit(FAILED)
    if code == INTERRUPTED:  # newer versions of Typer return it where older ones raise
        errors.print(f"\ninterrupted; to continue: {again}", soft_wrap=True, highlight=False, markup=False)
    sys.exit(code if isinstance(code, int) else DONE)
