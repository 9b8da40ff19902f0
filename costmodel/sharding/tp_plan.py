"""A model's own tensor-parallel plan (module-path pattern -> style) as fixed placements of its parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping

from costmodel.graph.model_graph import Segment
from costmodel.sharding.placements import Placement, Replicate, Shard

__all__ = ["assignment_from_tp_plan", "style_placement"]

_COLUMN = (
    "colwise",
    "colwise_rep",
    "colwise_gather_output",
    "local_colwise",
    "packed_colwise",
    "local_packed_colwise",
)
_ROW = (
    "rowwise",
    "rowwise_rep",
    "local_rowwise",
    "packed_rowwise",
    "local_packed_rowwise",
    "rowwise_split_input",
)
_VOCABULARY = ("embedding_rowwise", "vocab", "vocab_parallel")


def style_placement(style: str, shape: tuple[int, ...], leaf: str) -> Placement | None:
    """Placement of a parameter named `leaf` under a style; None for a style this does not know.

    Styles speak of nn.Linear weights [out, in]: column-parallel cuts out, row-parallel cuts in.
    """
    pieces = 2 if "packed" in style else 1
    if style in _COLUMN:
        return Shard(max(len(shape) - 2, 0), pieces)
    if style in _ROW:
        if leaf == "bias" or len(shape) < 2:
            return Replicate()
        return Shard(len(shape) - 1, pieces)
    if style in _VOCABULARY:
        return Shard(0)
    if style in ("replicate", "replicated", "gather", "sequence_parallel", "isolated"):
        return Replicate()
    return None


def assignment_from_tp_plan(segment: Segment, tp_plan: Mapping[str, str]) -> dict[str, Placement]:
    """Placement by parameter name for what the plan names; the solver completes the rest around it.

    A pattern is a module path with * for a number (or a parameter's own path); it may be given relative to
    the model's base module, so it is matched at the end of the path.
    """
    found: dict[str, Placement] = {}
    rules = [
        (re.compile(r"(?:^|.*\.)" + re.escape(p).replace(r"\*", r"[^.]+") + "$"), s)
        for p, s in tp_plan.items()
    ]
    for info in segment.parameters:
        module, _, leaf = info.name.rpartition(".")
        for pattern, style in rules:
            if pattern.match(module) or pattern.match(info.name):
                placement = style_placement(style, info.shape, leaf)
                if placement is not None:
                    found[info.name] = placement
                break
    return found
