"""lmms-eval 0.7.3, imported without its side effects. Import it from here and nowhere else.

On import lmms-eval removes the application's log sinks, silences every warning of the process, lets PIL accept truncated
images and raises torch's process-group timeout to a day; when it evaluates it patches ``filelock`` and ``ssl``. None of
that survives this module. It needs :func:`harness.base.shim` beside a CPU torch and is kept off the network.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import ssl
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import loguru
import torch.distributed
from PIL import ImageFile

from harness import base

base.offline()
base.shim()


@contextlib.contextmanager
def _untouched() -> Iterator[None]:
    """Keep log sinks, warning filters, PIL's truncation rule and torch's timeout as they were."""
    logger = type(loguru.logger)
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    timeout = torch.distributed.distributed_c10d.default_pg_timeout
    quiet = {name: mock.patch.object(logger, name, lambda *_, **__: -1) for name in ("remove", "add")}
    with warnings.catch_warnings(), quiet["remove"], quiet["add"]:
        yield
    ImageFile.LOAD_TRUNCATED_IMAGES = truncated
    torch.distributed.distributed_c10d.default_pg_timeout = timeout


with _untouched():
    import lmms_eval.api.task
    import lmms_eval.evaluator
    import lmms_eval.utils
    from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
    from lmms_eval.api.model import lmms
    from lmms_eval.api.task import ConfigurableTask
    from lmms_eval.tasks import TaskManager
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
    from lmms_eval.tasks.mme.utils import eval_type_dict as mme_categories
    from lmms_eval.tasks.mme.utils import parse_pred_ans as parse_mme_answer

loguru.logger.disable("lmms_eval")  # its messages are progress notes; what matters is checked and raised here


_bar = lmms_eval.api.task.tqdm


def _silent(*args: Any, **kwargs: Any) -> Any:
    """A tqdm bar that is never drawn: the command line has its own progress."""
    return _bar(*args, **{**kwargs, "disable": True})


for _module in (lmms_eval.api.task, lmms_eval.evaluator):
    _module.tqdm = _silent
lmms_eval.evaluator._enable_reentrant_filelocks._patched = True  # "already done": no data set is downloaded here

TASKS = Path(lmms_eval.evaluator.__file__).parent / "tasks"


def packaged(task: str) -> dict[str, Any]:
    """Return lmms-eval's packaged task configuration, functions resolved.

    Args:
        task: path relative to ``lmms_eval/tasks``, such as ``pope/pope.yaml``.

    Raises:
        UnknownName: when lmms-eval ships no such file.
    """
    path = TASKS / task
    if not path.is_file():
        raise base.unknown("lmms-eval task file", task, (p.relative_to(TASKS).as_posix() for p in TASKS.glob("*/*.yaml")))
    with _untouched():  # the task's own module is imported here
        config: dict[str, Any] = lmms_eval.utils.load_yaml_config(str(path), mode="full")
    return config


def run(model: lmms, task: ConfigurableTask) -> dict[str, Any]:
    """Return ``simple_evaluate``'s results for one task, with one logged sample per question.

    One process, no cache, no resampling of its own; the random state, standard output (MMBench prints) and the files that
    aggregations write stay inside.
    """
    with contextlib.ExitStack() as inside:
        inside.callback(random.setstate, random.getstate())
        inside.enter_context(warnings.catch_warnings())
        inside.enter_context(contextlib.redirect_stdout(io.StringIO()))
        inside.enter_context(mock.patch.object(type(loguru.logger), "info", lambda *_, **__: None))  # MME lists its categories
        inside.enter_context(mock.patch.object(ssl.SSLContext, "_orig_reduce", True, create=True))  # "already patched"
        inside.enter_context(mock.patch.dict(os.environ))
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # under a launcher each rank would score a part only
            os.environ.pop(name, None)
        inside.enter_context(mock.patch.object(torch.distributed, "is_initialized", lambda: False))  # it would wait for others
        folder = inside.enter_context(tempfile.TemporaryDirectory())
        results: dict[str, Any] = lmms_eval.evaluator.simple_evaluate(
            model=model,
            tasks=[task],
            task_manager=TaskManager(include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
            process_docs_parallel=1,
            distributed_executor_backend="torchrun",  # the other one creates accelerate's process-wide state
            random_seed=None,
            numpy_random_seed=None,
            torch_random_seed=None,
            cli_args=argparse.Namespace(output_path=folder, process_with_media=False, reasoning_tags=None),
        )
    return results


__all__ = [
    "TASKS",
    "ConfigurableTask",
    "GenerationResult",
    "Instance",
    "MMBench_Evaluator",
    "TaskManager",
    "TokenCounts",
    "extract_mcq_answer",
    "lmms",
    "mme_categories",
    "packaged",
    "parse_mme_answer",
    "run",
]
