"""What every target needs to know of a plan, and writing what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibrate.runner import ALONE, TOGETHER
from costmodel.errors import ForeshardError, PlanError, UsageError
from costmodel.files import write_whole
from costmodel.plan import Plan
from costmodel.registry import Registry
from costmodel.strategies.offload import FAMILY as OFFLOAD
from costmodel.strategies.registry import word_of

if TYPE_CHECKING:
    from costmodel.predict import Forecaster, Prediction
    from planner.validation.run_spec import RunSpec

__all__ = ["EXPORTERS", "ExportJob", "Exporter", "export_job", "write_export"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """A plan and the little of its model that launch configurations hold."""

    model: str
    plan: Plan
    seq_len: int
    """0 where the model has no sequence."""
    n_blocks: int
    """Repeated blocks (layers)."""
    block_class: str
    """Class name of a block, "" where it is not known."""
    ranks_per_node: int
    half: str
    """bf16, fp16 or "" (fp32): what products run in."""
    spec: RunSpec
    """The run that the validation harness would start."""
    as_run: Prediction
    """Forecast of that run: layers split by the styles it names."""
    yardstick_s: float
    """Seconds that the yardstick took as the profile was measured (`calibrate.yardstick`); 0: not known."""

    @property
    def nodes(self) -> int:
        """Nodes that the plan fills."""
        return -(-self.plan.world_size // self.ranks_per_node)

    @property
    def offload(self) -> str:
        """The plan's word for offload, "" where there is none."""
        return word_of(self.plan, OFFLOAD) or ""

    def refuse(self, target: str, *reasons: tuple[bool, str]) -> None:
        """Raise PlanError for the first reason that holds: what the target cannot express."""
        for holds, what in reasons:
            if holds:
                raise PlanError(f"plan {self.plan}: {target} has no {what}; change the plan or the target")


Exporter = Callable[[ExportJob], Mapping[str, str]]
EXPORTERS: Registry[Exporter] = Registry("export target")


def export_job(forecaster: Forecaster, plan: Plan, *, model: str, spec: RunSpec) -> ExportJob:
    """The job of a plan of a forecaster's model."""
    graph = forecaster.graph(plan.micro_batch_size)
    blocks = [segment for segment in graph.segments if segment.is_block]
    network = forecaster.profile.network
    dtype = forecaster.framework.compute_dtype
    return ExportJob(
        model=model,
        plan=plan,
        seq_len=graph.seq_len,
        n_blocks=sum(segment.count for segment in blocks),
        block_class=_class_of(forecaster, blocks[0].modules[0]) if blocks else "",
        ranks_per_node=1 if network is None else max(1, network.ranks_per_node),
        half=dtype if dtype in ("bf16", "fp16") else "",
        spec=spec,
        as_run=(forecaster.styled(lambda _: spec.tp_styles) if spec.tp_styles else forecaster)
        .forecast(plan)
        .prediction,
        yardstick_s=forecaster.profile.yardstick_s.get(TOGETHER if plan.world_size > 1 else ALONE, 0.0),
    )


def _class_of(forecaster: Forecaster, path: str) -> str:
    module = forecaster.source.build("meta").module
    return type(module.get_submodule(path.partition("+")[0])).__name__


def write_export(target: str, job: ExportJob, folder: Path, *, force: bool = False) -> list[Path]:
    """Write the target's files into `folder` and return their paths.

    Raises UsageError for an unknown target, PlanError for a plan that it cannot express, ForeshardError where
    one of the files is there without `force`; nothing is written then.
    """
    if target not in EXPORTERS:
        known = ", ".join(sorted(str(name) for name in EXPORTERS))
        raise UsageError(f"export target {target!r}: there are {known}")
    files = {folder / name: text for name, text in EXPORTERS[target](job).items()}
    if not force and (there := [str(path) for path in files if path.exists()]):
        raise ForeshardError(
            f"{', '.join(there)}: there already; pass --force to overwrite or choose another folder (--out)"
        )
    return [write_whole(path, text) for path, text in files.items()]
