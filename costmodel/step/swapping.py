"""Swapping of whole stages between host and device, as Harmony does (VLDB 2022, section 4).

A run is a rank's consecutive actions of one stage and direction. For a run of forwards the weights come in,
for a run of backwards the weights and the optimizer's state; after the last backward the stage is updated on
the device and both go out. Weights so move three times a step, whatever the number of micro-batches. The
next run's copies come in while this one computes (two buffers). A stage's inputs are kept on the host from
its forward to its backward, and pass through it between stages on one rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from costmodel.schedules import Step
from costmodel.stage_costs import StageCosts
from costmodel.step.builder import ActionBuilder

__all__ = ["Swaps", "resident_bytes"]


def _parameters(stage: StageCosts) -> int:
    return sum(unit.parameter_bytes for unit in stage.units)


def _optimizer_state(stage: StageCosts) -> int:
    """State beyond parameters and gradients (gradients as large as the parameters)."""
    return max(0, stage.state_bytes - 2 * _parameters(stage))


def resident_bytes(stages: list[StageCosts]) -> int:
    """Most model state on the device: the stage that computes and the one that comes in."""
    sizes = sorted((stage.state_bytes for stage in stages), reverse=True)
    return sum(sizes[:2])


class Swaps:
    """Issues the copies around each step of a swapping schedule."""

    def __init__(
        self,
        builder: ActionBuilder,
        final: AbstractSet[tuple[int, str, int]],
        where: Mapping[tuple[int, int], int],
    ) -> None:
        offload = builder.options.offload
        assert offload is not None
        self._builder = builder
        self._final = final
        self._where = where
        self._in = offload.h2d_bytes_per_s
        self._out = offload.d2h_bytes_per_s
        self._run: dict[int, tuple[int, bool]] = {}
        self._ends: defaultdict[int, list[int]] = defaultdict(list)
        self._outputs: dict[tuple[int, str, int], int] = {}
        """Copies to the host of outputs ("F") and gradients ("G") that the same rank goes on with."""
        self._inputs: dict[tuple[int, int], int] = {}
        """Copies to the host of the inputs of (stage, micro-batch)."""

    def before(self, rank: int, step: Step) -> list[int]:
        """Copies that the step waits for."""
        forward = step.kind == "F"
        after: list[int] = []
        run = (step.stage, forward)
        if self._run.get(rank) != run:
            if rank in self._run:
                self._ends[rank].append(self._builder.last_compute[rank])
            self._run[rank] = run
            stage = self._builder.stages[step.stage]
            size = _parameters(stage) + (0 if forward else _optimizer_state(stage))
            after.append(self._copy_in(rank, size, f"stage {step.stage} in", self._gate(rank)))
        key = (step.stage - 1, "F", step.micro_batch) if forward else (step.stage + 1, "G", step.micro_batch)
        if key in self._outputs:
            after.append(self._copy_in(rank, self._crossing(key), f"{step} input in", [self._outputs[key]]))
        if not forward and (step.stage, step.micro_batch) in self._inputs:
            size = self._crossing((step.stage - 1, "F", step.micro_batch))
            stashed = [self._inputs[step.stage, step.micro_batch], *self._gate(rank)]
            after.append(self._copy_in(rank, size, f"{step} stashed input in", stashed))
        return after

    def after(self, rank: int, step: Step, made: int) -> None:
        """Copies and the update that follow the step."""
        key = (step.stage, "F" if step.kind == "F" else "G", step.micro_batch)
        follower = step.stage + 1 if step.kind == "F" else step.stage - 1
        if self._where.get((follower, step.micro_batch)) == rank:
            self._outputs[key] = self._copy_out(rank, self._crossing(key), f"{step} out", [made])
        if step.kind == "F" and step.stage:
            before = (step.stage - 1, "F", step.micro_batch)
            if before in self._outputs:
                self._inputs[step.stage, step.micro_batch] = self._outputs[before]
            else:
                out = self._copy_out(rank, self._crossing(before), f"{step} input out", [made])
                self._inputs[step.stage, step.micro_batch] = out
        if (step.stage, step.kind, step.micro_batch) in self._final:
            stage = self._builder.stages[step.stage]
            parts = {"optimizer": stage.optimizer_s}
            data = self._builder.take_open_data(rank)
            done = self._builder.compute(rank, f"optimizer {step.stage}", "optimizer", parts, data)
            size = _parameters(stage) + _optimizer_state(stage)
            self._copy_out(rank, size, f"stage {step.stage} out", [done])

    def _crossing(self, key: tuple[int, str, int]) -> int:
        """Bytes of an output, or of the gradient of an input."""
        stage = key[0] if key[1] == "F" else key[0] - 1
        return self._builder.stages[stage].send_bytes

    def _gate(self, rank: int) -> list[int]:
        ends = self._ends[rank]
        return [ends[-2]] if len(ends) >= 2 else []

    def _copy_in(self, rank: int, size: float, name: str, after: list[int]) -> int:
        return self._builder.copy(rank, "h2d", size, self._in, name, after)

    def _copy_out(self, rank: int, size: float, name: str, after: list[int]) -> int:
        return self._builder.copy(rank, "d2h", size, self._out, name, after)
