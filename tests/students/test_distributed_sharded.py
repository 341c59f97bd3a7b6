"""FSDP2 over two processes without a GPU: accelerate shards on GPUs alone, so it is told here that two CPUs are some."""

import dataclasses

import pytest
import together
from killing import identical
from test_distributed import FAST_TAID, KILLED, Lora, case, given  # noqa: F401 - a fixture

CASES = [
    case("ce+ctkd+fd@instance", micro=1),
    case("ce+taid@famo", variant=FAST_TAID),
    case("ce+fkl@task", "stream", rows=6, micro=1),
    case("ce", "stream", rows=8, micro=1, grouping="modality_length"),  # steps without any image
    case("ce+fkl@task", "stream", rows=4, lora=Lora(rank=2, alpha=4, dropout=0.0, targets=("q_proj",))),
]
RESUMED = dataclasses.replace(
    KILLED, options=KILLED.options.model_copy(update={"save_every": 3, "flush_every": 3, "lora": None})
)


def _sharding():
    """Make accelerate shard on CPUs, and count what was sharded."""
    import accelerate
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    class Sharding(accelerate.Accelerator):
        def __init__(self, **named):
            super().__init__(**named)
            self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
            )
            PartialState._shared_state["distributed_type"] = self.state.distributed_type = DistributedType.FSDP

    accelerate.Accelerator = Sharding


def _all(ranks, given, out):  # noqa: F811
    from torch.distributed.tensor import DTensor

    from harness.base import UserError
    from students.parallel import Parallel

    _sharding()
    prepare, kinds = Parallel.prepare, []

    def watched(self, adapter, optimiser):
        prepare(self, adapter, optimiser)
        kinds.append(self.kind)
        assert all(isinstance(p, DTensor) for p in adapter.model.parameters())
        assert type(adapter.language.layers[0]).__name__.startswith("FSDP")

    Parallel.prepare = watched
    for number, each in enumerate(CASES):
        together.train(each, given[each.inputs], out / str(number))

    together.leave_after(7, RESUMED, given["stream"], out / "killed")
    together.train(RESUMED, given["stream"], out / "killed")
    together.train(RESUMED, given["stream"], out / "unbroken")
    assert set(kinds) == {"fsdp2"}
    refused = []
    for recipe, changes in (("ce+fkl@gradnorm", {}), ("ce+align_kd", {}), ("ce", {"optimiser": "muon"}), ("ce", {"rows": 5})):
        try:
            together.train(case(recipe, **changes), given["packed"], out / "refused")
        except UserError as error:
            refused.append(str(error))
    return refused


@pytest.fixture(scope="module")
def shared(given, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("sharded")
    return out, together.run(_all, given, out)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)), ids=[each.name for each in CASES])
def test_two_halves_do_what_one_does(shared, given, tmp_path, number):  # noqa: F811
    each = CASES[number]
    together.train(each, given[each.inputs], tmp_path / "alone", each.alone)
    together.same(tmp_path / "alone", shared[0] / str(number))


@pytest.mark.slow
def test_a_point_of_a_sharded_training_holds_whole_tensors(shared):
    identical(shared[0] / "killed", shared[0] / "unbroken")


@pytest.mark.slow
def test_what_needs_whole_weights_is_refused(shared):
    first, second = shared[1]
    assert first == second
    words = ("gradnorm", "align_kd", "muon", "do not divide evenly")
    assert len(first) == len(words)
    assert all(word in line for word, line in zip(words, first, strict=True))
