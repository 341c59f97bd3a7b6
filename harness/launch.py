"""A command over several processes: ``--launch`` starts them with accelerate's launcher; the first directs the others.

``accelerate launch --config_file FILE -m harness.run ...`` starts the same processes. The difference is what is left of an
error: there the launcher adds its own report and always exits with 1; here the command's own line and exit code are what
remains.
"""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness import cli, ranks
from harness.base import UserError, nearest

FOLDER = Path(__file__).parent / "presets" / "accelerate"
#: How long after a launcher's SIGTERM the first process looks for the reason before it ends.
_TERM_SECONDS = 5.0
#: Sections of a configuration whose fields accelerate does not check, and what its launcher calls them.
_SECTIONS = {"fsdp_config": "fsdp_", "deepspeed_config": ""}


# ---- starting the processes ------------------------------------------------------------------------------------------------


def configuration(name: str) -> Path:
    """Return the file of the launch configuration called ``name``, or the file at that path.

    Raises:
        UserError: when there is none.
    """
    path = Path(name).expanduser() if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        shipped = sorted(each.stem for each in FOLDER.glob("*.yaml"))
        close = nearest(name, shipped)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UserError(f"--launch {name}: no such configuration.{hint} Known: {', '.join(shipped)}, or a file of accelerate's")
    return path


def check(path: Path) -> Any:
    """Return a launch configuration as accelerate reads it (its ``ClusterConfig``).

    Raises:
        UserError: naming the file and what is wrong with it.
    """
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    try:
        found = load_config_from_file(str(path))
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no configuration for accelerate: {str(error).splitlines()[0]}") from error
    known = {action.dest for action in launch_command_parser()._actions}  # argparse has no public list
    for section, prefix in _SECTIONS.items():
        fields = {field for field in known if field.startswith(prefix)}
        for field in getattr(found, section):
            if field not in fields:
                close = nearest(field, fields)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise UserError(f"{path}: unknown field {section}.{field}.{hint}")
    return found


def check_devices(name: str, config: Any, device: str, gpus: int) -> None:
    """Refuse a launch on devices that this machine does not have, or that were not asked for.

    Args:
        name: of the configuration, as it was given.
        config: from :func:`check`.
        device: the command's ``--device``.
        gpus: how many this machine has.

    Raises:
        UserError: saying what to change.
    """
    here = config.num_processes // max(1, config.num_machines)
    if config.use_cpu and gpus and device != "cpu":
        raise UserError(f"--launch {name} is for the CPU, and this machine has a GPU, which would be used; add --device cpu")
    if not config.use_cpu and here > gpus:
        raise UserError(
            f"--launch {name} starts {here} processes on this machine, each for a GPU of its own, and torch sees {gpus};"
            " copy the configuration, change num_processes, and name the copy"
        )


def start(name: str, device: str, module: str, arguments: Sequence[str]) -> int:
    """Run ``python -m MODULE ARGUMENTS`` in the processes of a launch configuration; return the command's exit code.

    Args:
        name: of the configuration, or a file.
        device: the command's ``--device``.
        module, arguments: the command.

    Raises:
        UserError: for a configuration that cannot be used.
    """
    path = configuration(name)
    import torch.distributed.run  # so that its loggers are there

    check_devices(name, check(path), device, torch.cuda.device_count())
    from accelerate.commands import launch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    for logger in [each for each in logging.root.manager.loggerDict if each.startswith("torch.distributed.elastic")]:
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # the command says what happened
    parser = launch.launch_command_parser()
    try:
        launch.launch_command(parser.parse_args(["--config_file", str(path), "-m", module, *arguments]))
    except ChildFailedError as error:
        return _code(error)
    except SignalException as error:
        return cli.INTERRUPTED if error.sigval == signal.SIGINT else cli.FAILED
    except (ValueError, ImportError) as error:  # accelerate's word for a launch that cannot be: too few GPUs, no DeepSpeed
        raise UserError(f"--launch {name}: {str(error).splitlines()[0]}") from error
    return cli.DONE


def _code(error: Any) -> int:
    """Return the exit code of the process that directs; one that was killed has none of its own."""
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    code = codes.get(0, cli.FAILED)
    return code if code in (cli.BAD_INPUT, cli.INTERRUPTED) else cli.FAILED


# ---- the first of them -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def leading(membership: ranks.Membership) -> Iterator[None]:
    """Direct the other processes while the block, which ends with ``SystemExit``, runs; they end with its code.

    A launcher that sees one process die ends the others with SIGTERM; this one first waits a moment for the news of that
    death, so that it says what happened.
    """

    def told(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, _TERM_SECONDS)

    def over(*_: object) -> None:
        cli.say_error("the launcher ended this command: it was told to, or another process had ended")
        raise SystemExit(cli.FAILED)

    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher passes on what the terminal has sent already
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, told)
    signal.signal(signal.SIGALRM, over)
    signal.signal(signal.SIGINT, interrupted)
    code = cli.FAILED
    with ranks.led(membership) as leader:
        try:
            yield
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else code
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # it is ending
            leader.farewell(code)
