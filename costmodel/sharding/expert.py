"""Expert parallelism: experts divided over ranks, tokens sent to them and back by all-to-alls.

Per layer and direction (GShard, arXiv 2006.16668, section 3.2): dispatch and combine, each way of

    rows * width * bytes per element,   rows = tokens * top_k * capacity_factor

per rank, forward and again backward; under sequence parallelism tokens are those of the rank's slice. Each
rank holds experts / ep experts and computes the rows routed to them: tokens * top_k on average, times
`imbalance` on the busiest rank.

Where experts lie over tensor-parallel ranks too, s of them for every replica:

    whole sequences     the s ranks have the same tokens. Of one replica none are sent: each rank computes
                        what falls to its experts, and tensor parallelism's sum adds them up (vLLM's
                        FusedMoEParallelConfig.use_all2all_kernels: only with several replicas); of several
                        each rank sends 1 / s of the tokens (vLLM, use_sequence_parallel_moe)
    sequence parallel   each rank sends its own slice, which Megatron-Core asks for in training. Where experts
                        are not split beside (s = tp, expert-tensor-parallel-size 1), nothing is gathered for
                        them or summed after them
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod

from costmodel.errors import PlanError
from costmodel.graph.model_graph import Operator, Phase, Segment, TensorInfo, TensorRole
from costmodel.sharding.placements import Shard
from costmodel.sharding.sharded import CollectiveCall, LocalParameter, ShardedSegment

__all__ = ["Routing", "biased_elements", "dispatch_bytes", "expert_tensors", "split_experts"]

_EXPERT_KINDS = ("grouped_gemm", "moe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How evenly and how generously tokens are routed.

    `capacity_factor` 0: no fixed capacity, exactly the routed rows are sent (dropless); above 0 every expert
    gets capacity_factor * tokens * top_k / experts slots, full or not. `imbalance` is the rows of the busiest
    rank over the mean.
    """

    capacity_factor: float = 0.0
    imbalance: float = 1.0

    def __post_init__(self) -> None:
        if self.capacity_factor < 0 or self.imbalance < 1:
            raise PlanError(
                f"capacity_factor({self.capacity_factor}) must be >= 0 and imbalance({self.imbalance}) >= 1"
            )

    @property
    def busiest_rows(self) -> float:
        """Rows the busiest rank computes over the rows routed on average (a capacity cuts the surplus)."""
        return self.capacity_factor if self.capacity_factor else self.imbalance

    @property
    def sent_rows(self) -> float:
        """Rows sent per rank over routed rows."""
        return self.capacity_factor or 1.0


def dispatch_bytes(*, tokens: int, top_k: int, width: int, element_bytes: int, routing: Routing) -> int:
    """Bytes one rank sends in one dispatch (or combine)."""
    return ceil(tokens * top_k * routing.sent_rows) * width * element_bytes


def expert_tensors(segment: Segment) -> dict[int, int]:
    """Expert weights of a segment: tensor index -> number of experts (the leading dimension).

    A weight is an expert's if a grouped product (or a batched one over as many) uses it or a view of it.
    """
    tensors = {t.index: t for t in segment.tensors}
    origin = {t.index: t.index for t in segment.parameters}
    found: dict[int, int] = {}
    for op in segment.phase(Phase.FORWARD):
        sources = [origin[i] for i in op.inputs if i in origin]
        if op.kind in _EXPERT_KINDS or op.kind == "bmm":
            for i in sources:
                shape = tensors[i].shape
                grouped = op.kind in _EXPERT_KINDS or op.dims.get("batch") == shape[0]
                if len(shape) == 3 and grouped:
                    found[i] = shape[0]
        elif len(op.inputs) == 1 and sources and op.kind in ("host", "elementwise"):
            for out in op.outputs:
                origin[out] = sources[0]
    return found


def biased_elements(segment: Segment) -> int:
    """Elements of the results of a segment's expert products, one forward, to which a bias is added.

    An expert's bias is a row of a matrix parameter of the product's own module, as wide as the product.
    """
    biases = {(t.name.rpartition(".")[0], t.shape[1]) for t in segment.parameters if len(t.shape) == 2}
    return sum(
        op.dims["m"] * op.dims["n"]
        for op in segment.phase(Phase.FORWARD)
        if op.kind == "grouped_gemm" and (op.module, op.dims["n"]) in biases
    )


def split_experts(
    sharded: ShardedSegment,
    *,
    ep: int,
    routing: Routing,
    tp: int = 1,
    slices: int = 1,
    over: int | None = None,
) -> ShardedSegment:
    """One rank's part of a segment with its experts over ep ranks. Raises PlanError if they do not divide.

    `over` (default: ep): parts that experts are cut into here. Where ep ranks are tensor-parallel ones too,
    whose share of each expert `sharded` already is, they are fewer: no rank's share is divided twice.
    `slices`: ranks that hold a slice each of the sequence (sequence parallelism) and send the tokens of that;
    `tp`: tensor-parallel degree of `sharded`.
    """
    segment = sharded.local
    experts = expert_tensors(segment)
    if not experts:
        return sharded
    for count in experts.values():
        if count % ep:
            raise PlanError(
                f"experts({count}) % ep({ep}) != 0: choose an ep that divides the number of experts"
            )
    uses = _expert_operators(segment, set(experts))
    over = over or ep
    operators = tuple(_local(op, over, routing) if op.index in uses else op for op in segment.operators)
    tensors = tuple(_tensor(t, over) if t.index in experts else t for t in segment.tensors)
    parameters = tuple(_parameter(p, over) if p.tensor in experts else p for p in sharded.parameters)
    shared = ep // over
    calls: list[CollectiveCall] = []
    if slices > 1 or over > 1:
        own = [op for op in segment.operators if op.index in uses]
        calls = _exchanges(segment, own, ep, routing, slices if slices > 1 else shared)
    before = sharded.collectives
    if slices > 1 and shared == tp:
        before = _without_slices(segment, before, uses)
    return replace(
        sharded,
        local=replace(segment, operators=operators, tensors=tensors),
        parameters=parameters,
        collectives=(*before, *calls),
    )


def _without_slices(
    segment: Segment, calls: tuple[CollectiveCall, ...], uses: set[int]
) -> tuple[CollectiveCall, ...]:
    """The collectives without tensor parallelism's around experts: those of their own module, and those of
    the module around it where nothing but experts and their router reads what is gathered there."""
    forward = segment.phase(Phase.FORWARD)
    inside = {op.module for op in forward if op.index in uses}
    inside |= {op.module for op in forward if op.target.startswith("aten.topk")}
    homes = {module.rpartition(".")[0] for module in inside}
    dropped = {op.module for op in forward if op.index in uses}
    for call in calls:
        if call.op == "all_gather" and call.phase is Phase.FORWARD and call.module in homes:
            readers = {op.module for op in forward if call.tensor in op.inputs}
            if readers <= inside:
                dropped.add(call.module)
    return tuple(c for c in calls if c.axis != "tp" or c.what == "gradient" or c.module not in dropped)


def _expert_operators(segment: Segment, experts: set[int]) -> set[int]:
    origin = set(experts)
    found: set[int] = set()
    for op in segment.operators:
        touches = any(i in origin for i in op.inputs)
        if touches and op.kind in (*_EXPERT_KINDS, "bmm"):
            found.add(op.index)
        elif touches and op.phase is Phase.FORWARD and op.kind in ("host", "elementwise"):
            origin.update(op.outputs)
        elif op.phase is Phase.BACKWARD and op.forward_index in found:
            found.add(op.index)
    return found


def _local(op: Operator, ep: int, routing: Routing) -> Operator:
    dims = dict(op.dims)
    weights = ceil(op.bytes_read / ep)
    if "groups" in dims:
        dims["groups"] = max(1, dims["groups"] // ep)
        dims["m"] = ceil(dims["m"] * routing.busiest_rows)
    elif op.kind == "bmm":
        dims["batch"] = max(1, dims["batch"] // ep)
        dims["m"] = ceil(dims["m"] * ep * routing.busiest_rows)
    elif "moe_ep" in dims:
        dims["moe_ep"] = dims["moe_ep"] * ep
    return replace(op, dims=dims, flop=ceil(op.flop * routing.busiest_rows), bytes_read=weights)


def _tensor(info: TensorInfo, ep: int) -> TensorInfo:
    if info.role is not TensorRole.PARAMETER:
        return info
    return replace(info, shape=(info.shape[0] // ep, *info.shape[1:]), size_bytes=info.size_bytes // ep)


def _parameter(p: LocalParameter, ep: int) -> LocalParameter:
    return replace(
        p,
        local_shape=(p.local_shape[0] // ep, *p.local_shape[1:]),
        local_bytes=p.local_bytes // ep,
        placement=Shard(0),
        axis="ep" if not p.is_sharded else f"{p.axis}+ep",
    )


def _element_bytes(op: Operator, tensors: dict[int, TensorInfo]) -> int:
    """Bytes per element of an operator's result."""
    info = tensors[op.outputs[0]]
    return max(1, info.size_bytes // max(prod(info.shape), 1))


def _copies(segment: Segment, tensors: dict[int, TensorInfo]) -> int:
    """Experts that a token goes to: the width of the router's last choice (groups of experts come first)."""
    widths = [
        tensors[op.outputs[0]].shape[-1]
        for op in segment.phase(Phase.FORWARD)
        if op.target.startswith("aten.topk")
    ]
    return widths[-1] if widths else 1


def _exchanges(
    segment: Segment, ops: list[Operator], ep: int, routing: Routing, slices: int
) -> list[CollectiveCall]:
    tensors = {t.index: t for t in segment.tensors}
    calls: list[CollectiveCall] = []
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        own = [op for op in ops if op.phase is phase and op.kind in (*_EXPERT_KINDS, "bmm")]
        forward = [op for op in ops if op.phase is Phase.FORWARD and op.kind in (*_EXPERT_KINDS, "bmm")]
        if not own or not forward:
            continue
        for op, key, at in ((forward[0], "k", own[0].index - 1), (forward[-1], "n", own[-1].index)):
            width = op.dims.get("hidden", op.dims.get(key, 1))
            rows = op.dims.get("num_tokens", op.dims.get("m", 0)) * op.dims.get("batch", 1)
            element_bytes = _element_bytes(op, tensors)
            size = dispatch_bytes(
                tokens=ceil(rows / slices),
                top_k=op.dims.get("topk", 1),
                width=width,
                element_bytes=element_bytes,
                routing=routing,
            )
            calls.append(
                CollectiveCall(
                    op="all_to_all",
                    size_bytes=size,
                    n_ranks=ep,
                    axis="ep",
                    phase=phase,
                    after_operator=at,
                    module=op.module,
                    copies=op.dims.get("topk") or _copies(segment, tensors),
                    row_bytes=width * element_bytes,
                )
            )
    return calls
