"""Plans as launch configurations of other systems: one file per target, a function each.

@EXPORTERS.register("deepspeed")
def deepspeed(job: ExportJob) -> dict[str, str]: ...      # file name -> text
"""

from planner.export import accelerate, colossalai, deepspeed, megatron, torch_script, torchtitan
from planner.export.job import EXPORTERS, ExportJob, export_job, write_export

__all__ = ["EXPORTERS", "ExportJob", "export_job", "write_export"]

_TARGETS = (accelerate, colossalai, deepspeed, megatron, torch_script, torchtitan)
