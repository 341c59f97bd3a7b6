"""DeepSpeed ZeRO-2 and -3 over two processes without a GPU; accelerate leaves it out on CPUs, so it is told otherwise here.

Needs DeepSpeed (0.19 was tried), which nothing else does: skipped without. Run it with DS_ACCELERATOR=cpu in the environment.
"""

import importlib.util
import sys

import pytest
import together
from test_distributed import FAST_TAID, Lora, case, given  # noqa: F401 - a fixture

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]
CASES = [
    case("ce+ctkd+fd@instance"),
    case("ce+taid@famo", variant=FAST_TAID),
    case("ce", "stream", rows=8, micro=2, grouping="modality_length"),
    case("ce+fkl@task", "stream", rows=8, grouping="modality_length",
         lora=Lora(rank=2, alpha=4, dropout=0.0, targets=("q_proj",))),
]  # fmt: skip


def _engine(stage):
    """Make accelerate use DeepSpeed on CPUs."""
    import accelerate
    import deepspeed.comm.torch
    from accelerate import DeepSpeedPlugin
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # else it compiles one

    class Engine(accelerate.Accelerator):
        def __init__(self, **named):
            plugin = DeepSpeedPlugin(zero_stage=stage, zero3_init_flag=False)
            super().__init__(**named)
            plugin.set_mixed_precision("no")
            plugin.select(_from_accelerator_state=True)
            self.state.deepspeed_plugins = {"default": plugin}
            PartialState._shared_state["distributed_type"] = self.state.distributed_type = DistributedType.DEEPSPEED
            deepspeed.comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
            self.deepspeed_engine_wrapped = None

    accelerate.Accelerator = Engine


def _all(ranks, given, out, stage):  # noqa: F811
    from harness.base import UserError

    _engine(stage)
    for number, each in enumerate(CASES):
        together.train(each, given[each.inputs], out / str(number))
    refused = []
    for each in (case("ce", save_every=2), case("ce", "stream", rows=2), case("ce+fkl@gradnorm")):
        try:
            together.train(each, given[each.inputs], out / "refused")
        except UserError as error:
            refused.append(str(error))
    return refused


@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_do_what_one_does(given, tmp_path, stage):  # noqa: F811
    first, second = together.run(_all, given, tmp_path, stage)
    for number, each in enumerate(CASES):
        together.train(each, given[each.inputs], tmp_path / "alone" / str(number), each.alone)
        together.same(tmp_path / "alone" / str(number), tmp_path / str(number))
    assert first == second
    words = ("save_every", "rows with images, and others none", "gradnorm")
    assert len(first) == len(words)
    assert all(word in line for word, line in zip(words, first, strict=True))
