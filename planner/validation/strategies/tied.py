"""Parameters that several pipeline stages share (a tied embedding and vocabulary head).

Each stage has its own copy; after backward the copies' gradients are added up, as Megatron-LM does for
the embedding, so that the copies stay equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.validation.strategies.pipeline import stages_of_rank

if TYPE_CHECKING:
    import torch
    from torch import nn

    from costmodel.plan import Plan
    from planner.validation.tape import StagePlan, Tape

__all__ = ["SharedParameter", "TiedParameter", "shared_parameters", "tied_parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedParameter:
    """All names of one parameter, and the stages that use it."""

    paths: tuple[str, ...]
    stages: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TiedParameter:
    """This rank's copies of a shared parameter, and the ranks that hold the others (None: all are here)."""

    copies: tuple[torch.nn.Parameter, ...]
    group: Any

    def add_gradients(self) -> None:
        """Give every copy the sum of all copies' gradients. Sharded gradients are added shard by shard."""
        import torch.distributed as dist

        gradients = [p.grad for p in self.copies if p.grad is not None]
        local = [getattr(g, "_local_tensor", g) for g in gradients]
        for other in local[1:]:
            local[0].add_(other)
        if self.group is not None:
            dist.all_reduce(local[0], group=self.group)
        for other in local[1:]:
            other.copy_(local[0])


def shared_parameters(
    model: nn.Module, tape: Tape, plans: Sequence[StagePlan]
) -> tuple[SharedParameter, ...]:
    """Parameters that leaf modules of more than one stage use."""
    stage_of = {
        tape.steps[i].module: plan.index for plan in plans for i in plan.steps if tape.steps[i].module
    }
    names: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(path)
    shared = []
    for paths in names.values():
        stages = {s for path in paths for leaf, s in stage_of.items() if path.startswith(leaf + ".")}
        if len(stages) > 1:
            shared.append(SharedParameter(paths=tuple(paths), stages=tuple(sorted(stages))))
    return tuple(shared)


def tied_parameters(
    shared: Sequence[SharedParameter],
    local: Mapping[int, Mapping[str, torch.nn.Parameter]],
    plan: Plan,
    pp_group: Any,
) -> list[TiedParameter]:
    """This rank's part in each shared parameter; `local` maps its stages to their parameters by name.

    Makes one group per shared parameter among the pipeline ranks that hold it (only they take part).
    """
    import torch.distributed as dist

    ranks = dist.get_process_group_ranks(pp_group)
    tied = []
    for parameter in shared:
        copies = tuple(
            next(table[path] for path in parameter.paths if path in table)
            for stage, table in sorted(local.items())
            if stage in parameter.stages
        )
        if not copies:
            continue
        holders = [ranks[r] for r in range(plan.pp) if set(stages_of_rank(plan, r)) & set(parameter.stages)]
        group = dist.new_group(holders, use_local_synchronization=True) if len(holders) > 1 else None
        tied.append(TiedParameter(copies=copies, group=group))
    return tied
