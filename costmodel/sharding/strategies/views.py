"""Views and data movement: how a sharded dimension maps through reshape, permute, split, cat, expand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from math import gcd

from costmodel.sharding.placements import BROADCAST, PARTIAL, REPLICATED, Layout, Shard, sharded, view_shard
from costmodel.sharding.strategies.call import SHARDING_RULES, Call, Strategy

__all__ = ["concatenation", "expansion", "factory", "permutation", "reshape", "selection", "splitting"]


def _passing(call: Call) -> Iterator[Strategy]:
    """Views are linear: summands and partial gradients pass through."""
    k, m = len(call.inputs), len(call.outputs)
    yield Strategy(name="sum", inputs=(PARTIAL,) * k, outputs=(PARTIAL,) * m, parallel=False)
    yield Strategy(name="gradient_sum", inputs=(BROADCAST,) * k, outputs=(BROADCAST,) * m, parallel=False)


@SHARDING_RULES.register(
    "aten.view", "aten._unsafe_view", "aten.reshape", "aten.flatten", "aten.unflatten", "aten.squeeze",
    "aten.unsqueeze", "aten._reshape_alias", "aten.view_copy", "aten._reshape_copy",
)  # fmt: skip
def reshape(call: Call) -> Iterator[Strategy]:
    """Same elements in the same order under another shape (see `view_shard`)."""
    before, after = call.inputs[0], call.outputs[0]
    seen: set[tuple[Shard, Shard]] = set()
    for dim in range(len(before)):
        for c in call.options(i=0, dim=dim):
            image = view_shard(before, after, Shard(dim, c), call.n)
            if image is not None:
                seen.add((Shard(dim, c), image))
    for dim in range(len(after)):
        for c in call.options(o=0, dim=dim):
            origin = view_shard(after, before, Shard(dim, c), call.n)
            if origin is not None:
                seen.add((origin, Shard(dim, c)))
    for origin, image in sorted(seen, key=str):
        yield Strategy(
            name=f"{origin}->{image}",
            inputs=(Layout(origin, origin),),
            outputs=(Layout(image, image),),
            parallel=True,
        )
    yield from _passing(call)


def _order(call: Call) -> tuple[int, ...] | None:
    """Where each dimension of the result comes from: out[j] = in[order[j]]."""
    before, after = call.inputs[0], call.outputs[0]
    rank = len(before)
    if len(after) != rank:
        return None
    dims = call.argument("dims")
    if isinstance(dims, tuple) and len(dims) == rank:
        return tuple(d % rank for d in dims)
    first, second = call.dim_argument("dim0", rank), call.dim_argument("dim1", rank)
    order = list(range(rank))
    if first is not None and second is not None:
        order[first], order[second] = second, first
        return tuple(order)
    if call.op.target.startswith("aten.t.") or call.op.target == "aten.t":
        return tuple(reversed(order))
    fits = [p for p in permutations(order) if all(before[p[j]] == after[j] for j in order)]
    moved = [p for p in fits if p != tuple(order)] or fits
    return min(moved, key=lambda p: sum(p[j] != j for j in order), default=None)


@SHARDING_RULES.register(
    "aten.permute", "aten.transpose", "aten.t", "aten.swapaxes", "aten.movedim", "aten.permute_copy",
    "aten.transpose_copy", "aten.numpy_T", "aten.mT",
)  # fmt: skip
def permutation(call: Call) -> Iterator[Strategy]:
    """Dimensions in another order; taken from the arguments, else the simplest order the shapes allow."""
    order = _order(call)
    if order is None:
        return
    for j, dim in enumerate(order):
        for c in call.both_options(0, dim, 0, j):
            yield Strategy(name=f"dim{dim}", inputs=(sharded(dim, c),), outputs=(sharded(j, c),))
    yield from _passing(call)


@SHARDING_RULES.register("aten.expand", "aten.broadcast_to", "aten.expand_copy", "aten.repeat")
def expansion(call: Call) -> Iterator[Strategy]:
    """A dimension of size 1 (or a new one) repeated: the old ones pass, the new ones are cut for nothing."""
    before, after = call.inputs[0], call.outputs[0]
    lead = len(after) - len(before)
    for dim in range(len(after)):
        own = dim - lead
        if own >= 0 and before[own] == after[dim]:
            for c in call.both_options(0, own, 0, dim):
                yield Strategy(name=f"dim{dim}", inputs=(sharded(own, c),), outputs=(sharded(dim, c),))
        elif own < 0 or before[own] == 1:
            for c in call.options(o=0, dim=dim):
                yield Strategy(name=f"new{dim}", inputs=(BROADCAST,), outputs=(sharded(dim, c),))
    yield from _passing(call)


@SHARDING_RULES.register(
    "aten.split", "aten.split_with_sizes", "aten.chunk", "aten.tensor_split", "aten.split_copy",
    "aten.split_with_sizes_copy",
)  # fmt: skip
def splitting(call: Call) -> Iterator[Strategy]:
    """Pieces of one dimension: a packed shard of the whole gives plain shards of the pieces."""
    before, pieces = call.inputs[0], call.outputs
    rank = len(before)
    cut = call.dim_argument("dim", rank)
    if cut is None:
        cut = next((d for d in range(rank) if any(p[d] != before[d] for p in pieces)), rank - 1)
    for dim in range(rank):
        if dim != cut:
            chunks = set(call.options(i=0, dim=dim))
            for o in range(len(pieces)):
                chunks.update(call.options(o=o, dim=dim))
            for c in sorted(chunks):
                yield Strategy(
                    name=f"dim{dim}", inputs=(sharded(dim, c),), outputs=(sharded(dim, c),) * len(pieces)
                )
    unit = gcd(*(p[cut] for p in pieces))
    if unit and before[cut] % unit == 0 and call.cuts(before, cut, before[cut] // unit):
        yield Strategy(
            name="packed",
            inputs=(sharded(cut, before[cut] // unit),),
            outputs=tuple(sharded(cut, p[cut] // unit) for p in pieces),
        )
    yield from _passing(call)


@SHARDING_RULES.register("aten.cat", "aten.concat", "aten.stack")
def concatenation(call: Call) -> Iterator[Strategy]:
    """Pieces put together: other dimensions pass; the joined one becomes a packed shard of equal pieces.

    Pieces without elements that have one dimension are left out (caches of keys begin with one).
    """
    out = call.outputs[0]
    empty = [p == (0,) and len(out) > 1 for p in call.inputs]
    filled = [i for i, nothing in enumerate(empty) if not nothing]
    if not filled:
        return
    first, pieces = filled[0], [call.inputs[i] for i in filled]
    stacked = len(pieces[0]) + 1 == len(out)
    joined = call.dim_argument("dim", len(out))
    if joined is None:
        joined = next((d for d in range(len(out)) if d >= len(pieces[0]) or pieces[0][d] != out[d]), 0)

    def placed(layout: Layout) -> tuple[Layout, ...]:
        return tuple(REPLICATED if nothing else layout for nothing in empty)

    for dim in range(len(out)):
        if dim == joined:
            continue
        own = dim - 1 if stacked and dim > joined else dim
        if any(own >= len(p) or p[own] != out[dim] for p in pieces):
            continue
        for c in call.both_options(first, own, 0, dim):
            yield Strategy(name=f"dim{dim}", inputs=placed(sharded(own, c)), outputs=(sharded(dim, c),))
    if not stacked and len({p[joined] for p in pieces}) == 1 and call.cuts(pieces[0], joined):
        yield Strategy(
            name="packed",
            inputs=placed(sharded(joined)),
            outputs=(sharded(joined, len(pieces)),),
        )
    yield from _passing(call)


@SHARDING_RULES.register(
    "aten.slice", "aten.select", "aten.unbind", "aten.narrow", "aten.constant_pad_nd", "aten.pad",
    "aten.slice_copy", "aten.select_copy", "aten.unfold", "aten.diagonal",
)  # fmt: skip
def selection(call: Call) -> Iterator[Strategy]:
    """A part of one dimension (or padding of some): dimensions that keep their size pass."""
    before, after = call.inputs[0], call.outputs[0]
    dropped: int | None = None
    if len(after) == len(before) - 1:
        dropped = call.dim_argument("dim", len(before))
        if dropped is None:
            dropped = next((d for d in range(len(after)) if before[d] != after[d]), len(after))
    elif len(after) != len(before):
        return
    rest = call.inputs[1:]
    if rest:
        return
    touched = call.dim_argument("dim", len(before))
    for dim in range(len(before)):
        if dim == dropped or (touched == dim and dropped is None and before != after):
            continue
        image = dim - 1 if dropped is not None and dim > dropped else dim
        if before[dim] != after[image]:
            continue
        for c in call.both_options(0, dim, 0, image):
            yield Strategy(
                name=f"dim{dim}", inputs=(sharded(dim, c),), outputs=(sharded(image, c),) * len(call.outputs)
            )
    yield from _passing(call)


@SHARDING_RULES.register(
    "aten.new_empty", "aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty_strided",
    "aten.empty", "aten.zeros", "aten.ones", "aten.full", "aten.empty_strided", "aten.arange",
)  # fmt: skip
def factory(call: Call) -> Iterator[Strategy]:
    """A new tensor: each rank makes its part; one given for its type or device may be in any layout."""
    out = call.outputs[0]
    for dim in range(len(out)):
        for c in call.options(o=0, dim=dim):
            alike = all(len(x) == len(out) and x[dim] == out[dim] for x in call.inputs)
            given = sharded(dim, c) if alike else REPLICATED
            yield Strategy(name="made", inputs=(given,) * len(call.inputs), outputs=(sharded(dim, c),))
