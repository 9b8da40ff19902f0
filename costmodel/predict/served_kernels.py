"""Kernels of a server where a training step has several: what its libraries run as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from costmodel.graph.model_graph import Operator, Segment

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile

__all__ = [
    "as_answered",
    "joined_streams",
    "one_kernel_each",
    "one_product_each",
    "recurrence_rows",
    "recurrence_streams",
    "recurrences",
    "residual_with_norm",
    "routers",
    "shared_experts",
    "state_bytes",
    "state_update",
    "without_recurrence",
]

_HALF = 2.0
"""Bytes of an activation."""
_ROWS_OF_CHUNKS = 13
"""1 + (2 + 2) + (3 + 1) + (3 + 1): read and written by the four kernels of `recurrence_rows`."""


def as_answered(
    segment: Segment, kernels: Iterable[Operator], framework: FrameworkProfile
) -> tuple[Operator, ...]:
    """The kernels of a segment's forward as the framework runs them in inference, experts and recurrences
    aside; what the host does stays behind them."""
    found = list(kernels)
    homes = {op.module for op in segment.operators if op.kind == "attention"}
    if framework.merges_projections == "attention":
        return tuple(one_product_each(segment, found, homes))
    if not framework.merges_projections:
        return tuple(found)
    host = [op for op in found if op.kind == "host"]
    found = one_product_each(segment, [op for op in found if op.kind != "host"])
    found = joined_streams(segment, found, homes)
    return (*(residual_with_norm(found) if segment.is_block else found), *host)


def joined_streams(segment: Segment, kernels: list[Operator], attending: set[str]) -> list[Operator]:
    """Rotary embedding with the write to the cache as one kernel, and a router's choice as one."""
    found = one_kernel_each(kernels, attending, ("elementwise",), "rope")
    return one_kernel_each(found, routers(segment), ("elementwise", "reduction", "softmax"), None)


def routers(segment: Segment) -> set[str]:
    """Modules that choose experts."""
    return {op.module for op in segment.operators if "topk" in op.target}


def one_product_each(
    segment: Segment, kernels: list[Operator], homes: set[str] | None = None
) -> list[Operator]:
    """Products of one module that read one tensor, side by side in one kernel (the first one's place and
    name); a router and a shared expert read one tensor too, and stay apart. `homes`: modules whose products
    they are; default: any."""
    base = {t.index: t.index if t.view_of is None else t.view_of for t in segment.tensors}
    parameters = {t.index for t in segment.parameters}
    first: dict[tuple[str, int, int, str], int] = {}
    result: list[Operator] = []
    for op in kernels:
        inputs = [base.get(i, i) for i in op.inputs if base.get(i, i) not in parameters]
        home = op.module.rpartition(".")[0]
        alike = op.kind == "gemm" and inputs and (homes is None or home in homes)
        key = (home, inputs[0], op.dims["k"], op.dtype) if alike else None
        if key is not None and key in first:
            into = result[first[key]]
            result[first[key]] = replace(into, dims={**into.dims, "n": into.dims["n"] + op.dims["n"]})
            continue
        if key is not None:
            first[key] = len(result)
        result.append(op)
    return result


def one_kernel_each(
    kernels: list[Operator], homes: set[str], kinds: tuple[str, ...], variant: str | None
) -> list[Operator]:
    """What streams in each of the modules `homes` as one kernel over as many bytes, in the first one's
    place."""
    result: list[Operator] = []
    place: dict[str, int] = {}
    for op in kernels:
        if op.kind not in kinds or op.module not in homes:
            result.append(op)
        elif op.module not in place:
            place[op.module] = len(result)
            result.append(op if variant is None else replace(op, variant=variant))
        else:
            into = result[place[op.module]]
            dims = {key: into.dims[key] + op.dims[key] for key in ("rows", "bytes")}
            result[place[op.module]] = replace(into, dims={**into.dims, **dims})
    return result


def shared_experts(kernels: list[Operator], routers: set[str]) -> frozenset[int]:
    """Places of the kernels of shared experts: what lies beside routed experts and is no router."""
    places: set[int] = set()
    for op in kernels:
        holder = op.module.rpartition(".")[0]
        if op.kind != "moe" or not holder:
            continue
        others = (op.module, *routers)
        for place, other in enumerate(kernels):
            apart = any(other.module == m or other.module.startswith(f"{m}.") for m in others)
            if other.module.startswith(f"{holder}.") and not apart:
                places.add(place)
    return frozenset(places)


def residual_with_norm(kernels: list[Operator]) -> list[Operator]:
    """A block's last sum belongs to the next block's first normalisation: one kernel over both's bytes."""
    if len(kernels) < 2 or kernels[-1].kind != "elementwise" or "bytes" not in kernels[0].dims:
        return kernels
    first, last = kernels[0], kernels[-1]
    dims = {**first.dims, "bytes": first.dims["bytes"] + last.dims["bytes"]}
    return [replace(first, dims=dims), *kernels[1:-1]]


def recurrences(segment: Segment) -> set[str]:
    """Modules that keep a state instead of keys: they multiply batches of matrices without any attention."""
    attending = {op.module for op in segment.operators if op.kind == "attention"}
    return {op.module for op in segment.operators if op.kind == "bmm"} - attending - {""}


def state_bytes(segment: Segment, batch: int) -> list[float]:
    """Bytes of each recurrence's state of one request: the largest matrix of a head, in fp32."""
    sizes = []
    for home in sorted(recurrences(segment)):
        own = [op.dims for op in segment.operators if op.kind == "bmm" and op.module == home]
        sizes.append(4.0 * max(d["batch"] * d["n"] * d["k"] for d in own) / batch)
    return sizes


def without_recurrence(segment: Segment, kernels: list[Operator]) -> list[Operator]:
    """Kernels but those of recurrences, which servers run as one kernel that moves the state."""
    homes = recurrences(segment)
    return [
        op
        for op in kernels
        if op.kind == "gemm" or not any(op.module == m or op.module.startswith(m + ".") for m in homes)
    ]


def _widths(kernels: list[Operator], home: str, ways: int) -> tuple[int, int] | None:
    """Elements that a token's products make for a recurrence of one rank, and that it gives back."""
    products = [op for op in kernels if op.kind == "gemm" and op.module.startswith(f"{home}.")]
    return (products[0].dims["n"], products[-1].dims["k"] // ways) if len(products) > 1 else None


def recurrence_streams(
    kernels: list[Operator], homes: Iterable[str], *, tokens: int, ways: int
) -> list[Operator]:
    """What a gated recurrence streams beside its state: its convolution reads and writes all but the gate,
    its normalisation reads result and gate and writes one (Gated DeltaNet, arXiv 2412.06464, figure 1).

    `ways`: ranks that share its heads, where the product out of it is traced with all of them.
    """
    found = []
    for home in homes:
        widths = _widths(kernels, home, ways)
        if widths is not None:
            into, out = widths
            like = next(op for op in kernels if op.module.startswith(f"{home}."))
            for elements in (2 * max(out, into - out), 3 * out):
                found.append(replace(state_update(like, _HALF * elements * tokens), module=home))
    return found


def recurrence_rows(kernels: list[Operator], homes: Iterable[str], *, ways: int) -> list[float]:
    """Bytes that each recurrence's chunked form moves for a token of a prompt beside states: keys for their
    products; keys and values to the solved ones; these, values and queries again (arXiv 2412.06464, equations
    8 and 9; rows of half precision read and written, one kernel each)."""
    widths = [_widths(kernels, home, ways) for home in homes]
    return [_HALF * _ROWS_OF_CHUNKS * pair[1] if pair else 0.0 for pair in widths]


def state_update(like: Operator, size: float) -> Operator:
    dims = {"rows": max(1, round(size / 8.0 / 4096)), "cols": 4096, "bytes": max(1, round(size))}
    return replace(like, kind="elementwise", variant="copy", dtype="fp32", dims=dims)
