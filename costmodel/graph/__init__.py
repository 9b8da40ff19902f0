"""Any nn.Module to a ModelGraph.

model_graph.py  the graph as data (imports no torch)
blocks.py       repeated blocks, found from structure
capture.py      the training step as one torch.fx graph on fake tensors
nodes.py        fx nodes -> operators and tensors
segments.py     operators -> segments
tracing.py      all of it for one module
scalable.py     one trace for every micro-batch size
storage.py      to JSON and back
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from costmodel.graph.model_graph import ModelGraph, Operator, Phase, Segment, TensorInfo, TensorRole

if TYPE_CHECKING:
    from costmodel.graph.scalable import GraphStore, ScalableGraph, scalable_graph
    from costmodel.graph.storage import load_graph, save_graph
    from costmodel.graph.tracing import trace, trace_module
    from costmodel.graph.uncompiled import leave_compiler_unloaded

__all__ = [
    "GraphStore",
    "ModelGraph",
    "Operator",
    "Phase",
    "ScalableGraph",
    "Segment",
    "TensorInfo",
    "TensorRole",
    "leave_compiler_unloaded",
    "load_graph",
    "save_graph",
    "scalable_graph",
    "trace",
    "trace_module",
]

_LAZY = {
    "GraphStore": "scalable",
    "ScalableGraph": "scalable",
    "scalable_graph": "scalable",
    "load_graph": "storage",
    "save_graph": "storage",
    "trace": "tracing",
    "trace_module": "tracing",
    "leave_compiler_unloaded": "uncompiled",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(f"costmodel.graph.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
