"""A ModelGraph as JSON: written once, read back without torch or a trace."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from costmodel.errors import InputFileError
from costmodel.files import write_whole
from costmodel.graph.model_graph import ModelGraph, Operator, Phase, Segment, TensorInfo, TensorRole

__all__ = ["graph_from_json", "graph_to_json", "load_graph", "save_graph"]

# Format history:
#   1  first format
_FORMAT_VERSION = 1


def graph_to_json(graph: ModelGraph) -> str:
    """The graph as one JSON document."""
    return json.dumps({"format_version": _FORMAT_VERSION, "graph": asdict(graph)})


def graph_from_json(text: str) -> ModelGraph:
    """Read `graph_to_json`'s text. Raises InputFileError where it is not such a document."""
    try:
        data = json.loads(text)
        version = data["format_version"]
        if version != _FORMAT_VERSION:
            raise InputFileError(
                f"graph file has format_version {version}, this version reads {_FORMAT_VERSION}; trace again"
            )
        raw = data["graph"]
        return ModelGraph(
            **{
                **raw,
                "segments": tuple(_segment(s) for s in raw["segments"]),
                "notes": tuple(raw["notes"]),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputFileError(f"not a graph file: {error}; write one with foreshard trace --save") from error


def _segment(raw: dict[str, Any]) -> Segment:
    return Segment(
        **{
            **raw,
            "modules": tuple(raw["modules"]),
            "crossing": tuple(raw.get("crossing", ())),
            "operators": tuple(_operator(o) for o in raw["operators"]),
            "tensors": tuple(
                TensorInfo(**{**t, "shape": tuple(t["shape"]), "role": TensorRole(t["role"])})
                for t in raw["tensors"]
            ),
        }
    )


def _operator(raw: dict[str, Any]) -> Operator:
    return Operator(
        **{
            **raw,
            "inputs": tuple(raw["inputs"]),
            "outputs": tuple(raw["outputs"]),
            "phase": Phase(raw["phase"]),
            "arguments": {k: tuple(v) if isinstance(v, list) else v for k, v in raw["arguments"].items()},
        }
    )


def save_graph(graph: ModelGraph, path: Path) -> None:
    """Write the graph, whole or not at all. Raises ForeshardError where it cannot be."""
    write_whole(path, graph_to_json(graph))


def load_graph(path: Path) -> ModelGraph:
    """Read a graph file. Raises InputFileError."""
    try:
        return graph_from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"graph file {path}: {error}") from error
