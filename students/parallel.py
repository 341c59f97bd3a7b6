"""One training on several ranks: which rows are whose, the model under accelerate, and sums over ranks.

The ranks share a step's rows. Each computes the losses of its own, and gets the others' as numbers, so that every rank weighs
the whole micro-batch: the weighting's parameters get the full gradient everywhere, and a weighting that depends on the batch
sees what one process sees. Gradients of the student and of the energies' parameters are summed over ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from harness.base import UserError
from students.distributed import Ranks
from students.losses import ChannelLosses
from students.sharding import whole, whole_tree

if TYPE_CHECKING:
    from accelerate import Accelerator

    from students.feed import Members
    from students.learning import Learning
    from students.losses import Losses
    from students.models._base import Adapter
    from students.optimise import Optimiser
    from students.options import DistilOptions

T = TypeVar("T")
Kind = Literal["alone", "replicas", "fsdp2", "deepspeed"]


class _Times(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number: DDP, FSDP and DeepSpeed give means where a sum is wanted."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


class Pass(nn.Module):
    """A student's model, and what is computed with it in one forward pass, so that an engine sees every use of it."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.model = adapter.model
        self.device_type = next(adapter.model.parameters()).device.type
        # accelerate shards these one by one, where it shards
        self._no_split_modules = sorted({type(block).__name__ for block in adapter.language.layers})

    def forward(self, work: Callable[..., T], *given: Any) -> T:
        """Return ``work(*given)``, which runs the model."""
        # accelerate wraps all of this in autocast, and the work itself knows what of it belongs there
        with torch.autocast(self.device_type, enabled=False):
            return work(*given)


class Parallel:
    """A training's place among the ranks; with one of them, everything here is the identity.

    Args:
        ranks: all of them.
        accelerator: the engine, set up for the same.
        options: of the training.

    Raises:
        UserError: for options that this way of sharing does not have.
    """

    def __init__(self, ranks: Ranks, accelerator: Accelerator, options: DistilOptions) -> None:
        self.ranks, self.accelerator = ranks, accelerator
        self.kind: Kind = "alone" if ranks.world == 1 else _kind(accelerator)
        self.model: Any = None
        self.engine: Any = None
        self.clip_at = options.clip
        if self.sharded and options.optimiser == "muon":
            raise UserError("optimiser is 'muon', which needs whole matrices, and they are sharded; allowed: adamw")
        if self.sharded and options.frozen_dtype != "float32":
            raise UserError(f"frozen_dtype is {options.frozen_dtype!r}, and sharded weights share one type; allowed: float32")
        if self.kind == "deepspeed" and options.save_every is not None:
            raise UserError("save_every needs resume points, which DeepSpeed trainings do not have here; leave it out")

    @property
    def sharded(self) -> bool:
        """Whether no rank holds all weights."""
        return self.kind in ("fsdp2", "deepspeed")

    # ---- rows --------------------------------------------------------------------------------------------------------------

    def cut(self, members: Members, micro_rows: int | None) -> list[list[Members]]:
        """Cut a step's rows into micro-batches, and those into every rank's share: [micro-batch][rank].

        Args:
            members: the rows.
            micro_rows: rows of a rank's forward pass, or None for all of its rows at once.

        Raises:
            UserError: where a rank would have no rows, or sharded ranks unequally many.
        """
        world = self.ranks.world
        width = micro_rows * world if micro_rows else len(members)
        cuts = [members[start : start + width] for start in range(0, len(members), width)]
        rest = min(map(len, cuts))
        if rest < world:
            at_once = f" in micro-batches of {width}" if micro_rows else ""
            raise UserError(
                f"a step has {len(members)} rows{at_once}, which leaves {rest} to {world} processes at once; each needs one."
                " Change rows or micro_rows, or start fewer processes"
            )
        if self.sharded and (uneven := [len(rows) for rows in cuts if len(rows) % world]):
            raise UserError(
                f"{uneven[0]} rows do not divide evenly among {world} processes, as sharded models need;"
                " change rows or micro_rows"
            )
        return [shares(rows, world) for rows in cuts]

    # ---- the model ---------------------------------------------------------------------------------------------------------

    def prepare(self, adapter: Adapter, optimiser: Optimiser) -> None:
        """Put the model and its optimiser in the engine's hands."""
        if self.kind == "alone":
            return
        if self.kind == "replicas":
            self.model = self.accelerator.prepare(Pass(adapter))
            return
        if self.kind == "deepspeed":
            config = self.accelerator.state.deepspeed_plugin.deepspeed_config
            # micro-batches are cut here and counted here, so that the engine must not scale by any number of them
            config |= {"gradient_clipping": self.clip_at, "gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 1}
        made, stepped = self.accelerator.prepare(Pass(adapter), optimiser.parts[0])
        self.model = made
        if self.kind == "deepspeed":
            self.engine = made
            optimiser.hand_over(stepped)
        else:
            self._even(adapter)
            optimiser.refresh()

    def fits(self, needs: Collection[str], taps: Collection[str]) -> None:
        """Refuse what needs weights that no rank holds.

        Args:
            needs: of the weighting.
            taps: that energies read.

        Raises:
            UserError: naming it, and what is allowed.
        """
        if self.sharded and "gradient_norms" in needs:
            raise UserError("weighting 'gradnorm' reads gradients of a whole layer, and weights are sharded; use DDP")
        if self.sharded and "attention" in taps:
            raise UserError("energies on attention (align_kd) read a layer's weights, and weights are sharded; use DDP")

    def together(self) -> AbstractContextManager[None]:
        """What fails inside on one rank fails on all, where the ranks do not talk inside: a forward pass of whole weights."""
        return nullcontext() if self.sharded else self.ranks.together()

    def reading(self) -> AbstractContextManager[None]:
        """The same round the reading of rows, where the forward pass is not inside :meth:`together`."""
        return self.ranks.together() if self.sharded else nullcontext()

    def _even(self, adapter: Adapter) -> None:
        """Let ranks with images and ranks without sum the same gradients in the same order."""
        embedding = adapter.model.get_input_embeddings()
        if not embedding.weight.requires_grad:  # with LoRA: else the blocks' sums come late where no projector is used
            embedding.register_forward_hook(lambda _module, _given, found: found.requires_grad_(True))
        if not hasattr(self.model, "set_reduce_scatter_unused_params"):
            raise UserError(f"sharded training over rows with and without images needs torch 2.13; this is {torch.__version__}")
        self.model.set_reduce_scatter_unused_params(True)

    def alike(self, shown: bool) -> None:
        """Refuse rows with an image on some ranks alone, which DeepSpeed would wait for without end.

        Raises:
            UserError: on every rank.
        """
        if self.kind == "deepspeed" and all(self.ranks.any([shown, not shown])):
            raise UserError(
                "some processes have rows with images, and others none; DeepSpeed needs the same on all. Use DDP or FSDP, or"
                " grouping: modality_length"
            )

    def run(self, work: Callable[..., T], *given: Any) -> T:
        """Return ``work(*given)``, which runs the model, through the engine."""
        if self.model is None:
            return work(*given)
        found: T = self.model(work, *given)
        return found

    def settle(self) -> None:
        """Give back what a forward pass without a backward pass gathered of sharded weights."""
        if self.kind == "fsdp2":
            for module in self.model.modules():
                if hasattr(module, "reshard"):
                    module.reshard()

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Hold back the sum over ranks until a step's last micro-batch; forward and backward pass belong inside."""
        if self.kind == "deepspeed":
            # accelerate takes a step of the engine in the backward pass where this is set
            self.accelerator.sync_gradients = last
        if self.model is None or last or self.kind == "deepspeed":
            yield
            return
        with self.accelerator.no_sync(self.model):
            yield

    # ---- sums --------------------------------------------------------------------------------------------------------------

    def all(self, losses: ChannelLosses, features: Tensor | None, sizes: Sequence[int]) -> tuple[ChannelLosses, Tensor | None]:
        """Return losses, masks and features of the whole micro-batch, this rank's with their gradient.

        Args:
            losses: of this rank's samples.
            features: [own B, F] or None.
            sizes: how many samples each rank has.
        """
        if self.kind == "alone":
            return losses, features
        names, masked = list(losses.by_channel), list(losses.mask)
        columns = [v.detach()[:, None] for v in losses.by_channel.values()]
        kind = reduce(torch.promote_types, (v.dtype for v in losses.by_channel.values()))
        columns += [v[:, None] for v in losses.mask.values()] + ([] if features is None else [features.detach()])
        pieces = self._gathered(torch.cat([c.to(kind) for c in columns], 1), sizes)
        rank = self.ranks.rank
        by_channel, mask = {}, {}
        for k, name in enumerate(names):
            own: Tensor = _Times.apply(losses.by_channel[name], self.ranks.world)  # type: ignore[no-untyped-call]
            by_channel[name] = torch.cat([own if r == rank else p[:, k].to(own.dtype) for r, p in enumerate(pieces)])
        for k, name in enumerate(masked, start=len(names)):
            mask[name] = torch.cat([p[:, k] > 0 for p in pieces])
        if features is None:
            return ChannelLosses(by_channel, mask), None
        first = len(names) + len(masked)
        joined = [features if r == rank else p[:, first:].to(features.dtype) for r, p in enumerate(pieces)]
        return ChannelLosses(by_channel, mask), torch.cat(joined)

    def _gathered(self, table: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Return every rank's table [size, C]; the sizes are known, so that nothing is read from the device."""
        import torch.distributed as dist

        longest = max(sizes)
        padded = table.new_zeros(longest, table.shape[1])
        padded[: len(table)] = table
        found = table.new_empty(longest * self.ranks.world, table.shape[1])
        dist.all_gather_into_tensor(found, padded)
        return [found[r * longest : r * longest + size] for r, size in enumerate(sizes)]

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of one type, in place, by their sums over ranks."""
        found = list(tensors)
        if self.kind == "alone" or not found:
            return
        import torch.distributed as dist

        flat = torch.cat([t.reshape(-1) for t in found])
        dist.all_reduce(flat)
        for target, part in zip(found, flat.split([t.numel() for t in found]), strict=True):
            target.copy_(part.view_as(target))

    def complete(self, losses: Losses, adapter: Adapter, shown: bool) -> None:
        """Sum the gradients of the energies' parameters over ranks; the engine did the student's.

        Args:
            losses: the energies are theirs.
            adapter: the student.
            shown: whether this rank's rows of the step have an image. Where no rank's have, nothing of tower and projector was
                used, and no optimiser may move it; DDP knows, FSDP has zeros.
        """
        if self.kind == "alone":
            return
        if self.kind == "fsdp2" and not self.ranks.any([shown])[0]:
            for parameter in (*adapter.projector.parameters(), *adapter.tower.parameters()):
                parameter.grad = None
        learned = list(losses.parameters())
        there = self.ranks.any([p.grad is not None for p in learned])
        grads = []
        for parameter, has in zip(learned, there, strict=True):
            if has:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                grads.append(parameter.grad)
        self.add(grads)
        for grad in grads:  # every rank's is `world` times its share, as the engines' means need it
            grad.div_(self.ranks.world)

    def advance(self, losses: Losses) -> None:
        """Sum what the stateful energies counted in this step over ranks."""
        if self.kind == "alone":
            return
        energies = map(losses.energy, losses.energies)
        self.add(getattr(energy, name) for energy in energies for name in energy.sums)

    def clip(self, optimiser: Optimiser, most: float) -> Tensor:
        """Scale the student's gradient to a norm of at most ``most``; return the norm that it had, 0-d."""
        if self.kind == "deepspeed":  # which scaled it in its step
            return torch.as_tensor(self.engine.get_global_grad_norm(), device=self.accelerator.device)
        return whole(torch.nn.utils.clip_grad_norm_(optimiser.parameters, most))

    # ---- records -----------------------------------------------------------------------------------------------------------

    def saved(self, learning: Learning, seed: int) -> Learning:
        """Return the student as rank 0 can write it: itself, or, of sharded weights, a whole one made again from its base.

        Raises:
            RuntimeError: when a frozen tensor changed.
        """
        if not self.sharded:
            return learning
        if self.kind == "deepspeed":
            from deepspeed.utils import safe_get_full_fp32_param

            state = {name: safe_get_full_fp32_param(p) for name, p in learning.adapter.trainable()}
        else:
            learning.check()
            state = whole_tree(learning.state())
        return learning.again(state, seed) if self.ranks.first else learning

    def total(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums over ranks of counts (0-d tensors) by name."""
        if self.kind == "alone":
            return dict(counts)
        found = self.ranks.gather({name: count.cpu() for name, count in counts.items()})
        return {name: torch.stack([each[name] for each in found]).sum(0) for name in found[0]}


def shares(rows: Members, world: int) -> list[Members]:
    """Cut rows into as many contiguous shares of nearly equal numbers, the larger ones first."""
    size, more = divmod(len(rows), world)
    ends = [k * size + min(k, more) for k in range(world + 1)]
    return [rows[start:end] for start, end in itertools.pairwise(ends)]


def handlers(ranks: Ranks) -> list[Any]:
    """Return how accelerate is to set up DDP: parameters may go unused (a batch without an image), and buffers are constant."""
    if ranks.world == 1:
        return []
    from accelerate import DistributedDataParallelKwargs

    return [DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False, gradient_as_bucket_view=True)]


def _kind(accelerator: Accelerator) -> Kind:
    """Return what accelerate was configured for.

    Raises:
        UserError: for an engine that trainings do not have.
    """
    kind = str(accelerator.distributed_type.value)
    if kind.startswith("MULTI_"):
        return "replicas"
    if kind == "FSDP":
        if not accelerator.is_fsdp2:
            raise UserError("accelerate is configured for fsdp_version 1; allowed: 2")
        if accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
            raise UserError("fsdp_cpu_ram_efficient_loading is true, and every process reads the base itself; allowed: false")
        return "fsdp2"
    if kind == "DEEPSPEED":
        if accelerator.state.deepspeed_plugin.zero3_init_flag:
            raise UserError("zero3_init_flag is true, and every process reads the base itself; allowed: false")
        from transformers.integrations import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()  # accelerate set it, and transformers would cut the teacher's weights too
        return "deepspeed"
    raise UserError(f"accelerate is configured for {kind!r}; allowed: MULTI_CPU, MULTI_GPU (DDP), FSDP (version 2), DEEPSPEED")
