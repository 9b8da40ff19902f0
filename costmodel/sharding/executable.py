"""What modules parallelised one by one can run: torch's `parallelize_module` with local tensors in between.

Such a run changes only the modules that are named: their weights are local, they take and give plain local
tensors, and all else is the model's own code. So a layout changes at the border of a styled module only:

    colwise, colwise:C   takes whole input, gives its part of the features (of each of C equal pieces)
    colwise_gather       the same, gathered before it is given on
    rowwise, vocab       sums its result over the ranks
    channels             batch normalisation between two split convolutions

Everything between acts on local tensors as it is, which is right for operators that treat the split dimension
index by index, and wrong for one that would leave a partial result or cut a whole tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

from costmodel.graph.model_graph import Operator
from costmodel.sharding.block import Block
from costmodel.sharding.placements import Partial, Replicate, Shard
from costmodel.sharding.strategies import Strategy

__all__ = ["STYLE_OF_STRATEGY", "executable_strategies", "may_gather", "module_of", "style_of"]

STYLE_OF_STRATEGY: Mapping[str, str] = {
    "n": "colwise",
    "c_out": "colwise",
    "k": "rowwise",
    "c_in": "rowwise",
    "vocabulary": "vocab",
    "channels": "channels",
}


def module_of(parameter: str) -> str:
    """Path of the module that owns a parameter."""
    return parameter.rpartition(".")[0]


def style_of(block: Block, position: int, strategy: Strategy) -> tuple[str, str] | None:
    """(module path, style) of an operator with a weight under a strategy; None where nothing is split."""
    for v, layout in zip(block.inputs[position], strategy.inputs, strict=True):
        value, shard = block.values[v], layout.forward
        if not value.of_parameter or not isinstance(shard, Shard):
            continue
        style = STYLE_OF_STRATEGY.get(strategy.name)
        if style is None or (len(value.info.shape) < 2 and style != "channels"):
            continue
        packed = f":{shard.chunks}" if style == "colwise" and shard.chunks > 1 else ""
        return module_of(value.parameter), style + packed
    return None


def executable_strategies(
    block: Block, position: int, strategies: list[Strategy], styles: Mapping[str, str] | None
) -> list[Strategy]:
    """Those of an operator's strategies that a run of styled modules can carry out.

    With `styles`, an operator with a weight takes exactly what its module's style says.
    """
    op = block.forward[position]
    good = [s for s in strategies if _runs(block, position, op, s)]
    if styles is None:
        return good
    chosen = []
    for strategy in good:
        named = style_of(block, position, strategy)
        paths = {
            module_of(block.values[v].parameter) for v in block.inputs[position] if block.values[v].parameter
        }
        wanted = next((styles[path] for path in paths if path in styles), None)
        own = block.forward[position].kind == "host"
        if (
            own
            or (named is None and wanted is None)
            or (named is not None and wanted is not None and wanted.replace("_gather", "") == named[1])
        ):
            chosen.append(strategy)
    return chosen or good[:1]


def _runs(block: Block, position: int, op: Operator, strategy: Strategy) -> bool:
    if strategy.name == "replicated":
        return True
    if strategy.collectives or strategy.name.startswith("new"):
        return False
    if strategy.name == "made" and not any(isinstance(x.forward, Shard) for x in strategy.inputs):
        return False
    values = block.inputs[position]
    view = op.kind == "host" and len(values) == 1
    weights = [v for v in values if block.values[v].of_parameter]
    makes_partial = any(isinstance(x.forward, Partial) for x in strategy.outputs)
    if view:
        return True
    if not weights:
        return not makes_partial and strategy.name not in ("query_heads", "query_rows", "gradient_sum")
    split = style_of(block, position, strategy)
    if split is None:
        whole = all(
            isinstance(x.forward, Replicate)
            for v, x in zip(values, strategy.inputs, strict=True)
            if block.values[v].of_parameter
        )
        return whole and not any(isinstance(x.forward, Shard) for x in strategy.outputs)
    style = split[1]
    if style == "channels":
        return "batch_norm" in op.target
    if op.kind == "conv":
        return style == "colwise" or (style == "rowwise" and len(values) == 2)
    if op.kind == "embedding":
        return style == "vocab"
    if op.kind != "gemm":
        return False
    return style.startswith("colwise") or (
        style == "rowwise"
        and not any(isinstance(x.forward, Shard) and x.forward.chunks > 1 for x in strategy.inputs)
    )


def may_gather(block: Block, after: int | None, styles: Mapping[str, str] | None) -> bool:
    """Whether the value made at a position may be gathered: the output of a column-parallel nn.Linear."""
    if after is None:
        return False
    module = block.forward[after].module
    for position, op in enumerate(block.forward):
        if op.module != module or op.kind != "gemm":
            continue
        names = [block.values[v].parameter for v in block.inputs[position] if block.values[v].parameter]
        matrices = [n for n in names if _stored_out_in(block, n, position)]
        if matrices:
            return styles is None or styles.get(module_of(matrices[0])) == "colwise_gather"
    return False


def _stored_out_in(block: Block, name: str, position: int) -> bool:
    """Whether a product's weight is stored [out, in], as nn.Linear does: used transposed, or by linear."""
    if "linear" in block.forward[position].target:
        return True
    for v in block.inputs[position]:
        value = block.values[v]
        if value.parameter == name and len(value.info.shape) == 2:
            return value.producer is not None
    return False
