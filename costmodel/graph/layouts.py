"""Sizes and strides of operators' results from those of their arguments, for the calls that most models make.

torch's own shape functions, many of them written in Python, take one to ten milliseconds a call; these take
microseconds. A rule answers for the plain case, tensors packed in order, and None for any other; then
torch is asked. `costmodel.graph.fake_calls` holds every rule against torch's answer where it first applies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from costmodel.registry import Registry

__all__ = ["FILLS", "LAYOUTS", "VIEWS", "Layout", "elementwise", "is_plain_view", "packed"]

_aten = torch.ops.aten

_Size = tuple[int, ...]
Layout = tuple[_Size, _Size]
"""Sizes and strides, in elements."""

_Made = Sequence[Layout | None] | None

LAYOUTS: Registry[Callable[..., _Made]] = Registry("layout rule")
"""Operator -> function of its arguments that gives one layout a result, None for a result that is None."""

VIEWS = frozenset(
    (
        _aten.alias.default,
        _aten.as_strided.default,
        _aten.detach.default,
        _aten.diagonal.default,
        _aten.expand.default,
        _aten.permute.default,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.split.Tensor,
        _aten.split_with_sizes.default,
        _aten.squeeze.default,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.t.default,
        _aten.transpose.int,
        _aten.unbind.int,
        _aten.unsqueeze.default,
    )
)
"""Operators whose results are their first argument seen otherwise, as torch's C++ says."""

FILLS = frozenset((_aten.bernoulli_.float, _aten.zero_.default, _aten.fill_.Scalar, _aten.normal_.default))
"""Operators that fill their first argument and give it back."""


@lru_cache(maxsize=4096)
def packed(shape: _Size) -> _Size:
    """Strides of a new tensor."""
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * max(shape[i + 1], 1)
    return tuple(strides)


def _fresh(shape: _Size) -> Layout:
    return shape, packed(shape)


def _is_packed(tensor: torch.Tensor) -> bool:
    return packed(tuple(tensor.shape)) == tensor.stride()


@lru_cache(maxsize=4096)
def _kept(shape: _Size, stride: _Size) -> bool:
    """Whether a new tensor like one of this layout has the same strides: its dimensions, in another order
    maybe, follow one another without gaps and none has stride or size in common with another."""
    if packed(shape) == stride:
        return True
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if step != expected or size < 2:
            return False
        expected *= size
    return True


def _is_dim(dim: int, tensor: torch.Tensor) -> bool:
    return -tensor.ndim <= dim < tensor.ndim


def _like(tensor: torch.Tensor) -> Layout | None:
    shape, stride = tuple(tensor.shape), tensor.stride()
    return (shape, stride) if _kept(shape, stride) else None


def _repeated(operands: Sequence[Layout]) -> _Size | None:
    """Sizes of all together, where sizes of one are repeated; None where they do not go together."""
    n = max(len(shape) for shape, _ in operands)
    result = [1] * n
    for shape, _ in operands:
        for i, size in enumerate(shape, n - len(shape)):
            if size != 1 and result[i] not in (1, size):
                return None
            result[i] = size if size != 1 else result[i]
    return None if 0 in result else tuple(result)


def _follows(shape: _Size, steps: _Size, order: Sequence[int]) -> bool:
    """Whether strides fall in this order of dimensions, repeated ones (of stride 0) left out; of two that are
    the same, the longer dimension is the outer one."""
    kept = [i for i in order if steps[i]]
    return all(
        steps[a] > steps[b] or (steps[a] == steps[b] and a < b and shape[a] >= shape[b])
        for a, b in pairwise(kept)
    )


def _in_order(shape: _Size, stride: _Size, order: Sequence[int]) -> bool:
    """Whether elements lie without gaps in this order of dimensions; those of size 1 may have any stride."""
    step = 1
    for i in reversed(order):
        if shape[i] != 1 and stride[i] != step:
            return False
        step *= shape[i]
    return True


@lru_cache(maxsize=4096)
def elementwise(operands: tuple[Layout, ...]) -> Layout | None:
    """Result of an operator on every element, sizes of one repeated; None where the order is not plain.

    The result is packed in the order of dimensions that the operands have.
    """
    shape = _repeated(operands)
    if shape is None:
        return None
    n = len(shape)
    if n < 2:
        return _fresh(shape)
    if all(own == shape for own, _ in operands):
        rows_first = all(_in_order(*operand, range(n)) for operand in operands)
        channels_last = n == 4 and all(_in_order(*operand, (0, 2, 3, 1)) for operand in operands)
        if rows_first and not channels_last:
            return _fresh(shape)
        if channels_last and not rows_first:
            return None
    steps = [
        (0,) * (n - len(own))
        + tuple(
            step if size == whole else 0
            for size, step, whole in zip(own, stride, shape[n - len(own) :], strict=True)
        )
        for own, stride in operands
    ]
    # the first operand decides where it has every dimension; those that are repeated follow the others
    leader = next((own for own in steps if 0 not in own), None)
    order = list(range(n)) if leader is None else sorted(range(n), key=lambda i: (-leader[i], i))
    deciding = steps[:1] if leader is steps[0] else steps
    if not all(_follows(shape, own, order) for own in deciding):
        return None
    strides, step = [0] * n, 1
    for i in reversed(order):
        strides[i] = step
        step *= shape[i]
    return shape, tuple(strides)


def is_plain_view(tensor: torch.Tensor, shape: Sequence[int]) -> bool:
    """Whether strides of another shape of it do not depend on who computes them: those of dimensions of one
    element are nobody's business, so torch's own two answers differ there."""
    return _is_packed(tensor) or (1 not in tensor.shape and 1 not in shape)


@LAYOUTS.register(_aten.mm.default)
def _mm(a: torch.Tensor, b: torch.Tensor) -> _Made:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        return None
    return (_fresh((a.shape[0], b.shape[1])),)


@LAYOUTS.register(_aten.addmm.default)
def _addmm(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: Any = 1, alpha: Any = 1) -> _Made:
    made = _mm(a, b)
    return made if made is not None and bias.ndim == 1 and bias.shape[0] == b.shape[1] else None


@LAYOUTS.register(_aten.bmm.default)
def _bmm(a: torch.Tensor, b: torch.Tensor) -> _Made:
    if a.ndim != 3 or b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[2] != b.shape[1]:
        return None
    return (_fresh((a.shape[0], a.shape[1], b.shape[2])),)


@LAYOUTS.register(_aten.baddbmm.default)
def _baddbmm(
    added: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: Any = 1, alpha: Any = 1
) -> _Made:
    made = _bmm(a, b)
    if made is None or made[0] is None or _repeated((made[0], (tuple(added.shape), ()))) != made[0][0]:
        return None
    return made


@LAYOUTS.register(
    _aten.clone.default,
    _aten._to_copy.default,
    _aten.empty_like.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
    _aten.rand_like.default,
)
def _same(
    tensor: torch.Tensor, *_: Any, memory_format: torch.memory_format | None = None, **__: Any
) -> _Made:
    if memory_format is torch.contiguous_format:
        return (_fresh(tuple(tensor.shape)),)
    if memory_format not in (None, torch.preserve_format):
        return None
    found = _like(tensor)
    return None if found is None else (found,)


@LAYOUTS.register(_aten.new_empty_strided.default)
def _strided(tensor: torch.Tensor, size: _Size, stride: _Size, **_: Any) -> _Made:
    return ((tuple(size), tuple(stride)),)


@LAYOUTS.register(
    _aten.new_empty.default, _aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default
)
def _new(tensor: torch.Tensor, size: _Size, *_: Any, **__: Any) -> _Made:
    return (_fresh(tuple(size)),)


@LAYOUTS.register(_aten.sum.dim_IntList, _aten.mean.dim, _aten.amax.default, _aten.amin.default)
def _reduced(
    tensor: torch.Tensor, dim: Sequence[int] | None = None, keepdim: bool = False, **_: Any
) -> _Made:
    if not _is_packed(tensor) or not tensor.ndim:
        return None
    if dim and not all(_is_dim(d, tensor) for d in dim):
        return None
    dims = {d % tensor.ndim for d in dim} if dim else set(range(tensor.ndim))
    if keepdim:
        return (_fresh(tuple(1 if i in dims else size for i, size in enumerate(tensor.shape))),)
    return (_fresh(tuple(size for i, size in enumerate(tensor.shape) if i not in dims)),)


@LAYOUTS.register(_aten._softmax.default, _aten._log_softmax.default, _aten._safe_softmax.default)
def _softmax(tensor: torch.Tensor, dim: int, *_: Any, **__: Any) -> _Made:
    return (_fresh(tuple(tensor.shape)),) if _is_packed(tensor) and _is_dim(dim, tensor) else None


@LAYOUTS.register(_aten._softmax_backward_data.default, _aten._log_softmax_backward_data.default)
def _softmax_backward(grad: torch.Tensor, out: torch.Tensor, *_: Any) -> _Made:
    if grad.shape != out.shape or not _is_packed(grad) or not _is_packed(out):
        return None
    return (_fresh(tuple(out.shape)),)


@LAYOUTS.register(_aten.native_layer_norm.default)
def _layer_norm(tensor: torch.Tensor, shape: Sequence[int], *_: Any) -> _Made:
    outer = tensor.ndim - len(shape)
    if not _is_packed(tensor) or outer < 0 or tuple(tensor.shape[outer:]) != tuple(shape):
        return None
    statistics = _fresh((*tensor.shape[:outer], *(1 for _ in shape)))
    return _fresh(tuple(tensor.shape)), statistics, statistics


@LAYOUTS.register(_aten.native_layer_norm_backward.default)
def _layer_norm_backward(
    grad: torch.Tensor,
    tensor: torch.Tensor,
    shape: Sequence[int],
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    wanted: Sequence[bool],
) -> _Made:
    if not _is_packed(grad) or not _is_packed(tensor):
        return None
    own = _fresh(tuple(shape))
    return (
        _fresh(tuple(tensor.shape)) if wanted[0] else None,
        own if wanted[1] and weight is not None else None,
        own if wanted[2] and bias is not None else None,
    )


@LAYOUTS.register(_aten.embedding.default)
def _embedding(weight: torch.Tensor, indices: torch.Tensor, *_: Any) -> _Made:
    return (_fresh((*indices.shape, weight.shape[1])),) if weight.ndim == 2 else None


@LAYOUTS.register(_aten.embedding_dense_backward.default)
def _embedding_backward(grad: torch.Tensor, indices: torch.Tensor, n: int, *_: Any) -> _Made:
    return (_fresh((n, grad.shape[-1])),)


def _rows_first(tensor: torch.Tensor) -> bool:
    """Whether torch would not take it for an image with its channels last."""
    return (
        _is_packed(tensor)
        or tensor.ndim == 3
        or (tensor.ndim == 4 and tensor.stride(1) > 1 < tensor.shape[1])
    )


@LAYOUTS.register(_aten.cat.default)
def _cat(tensors: Sequence[torch.Tensor], dim: int = 0) -> _Made:
    first = tensors[0]
    if not _is_dim(dim, first) or not all(
        _rows_first(t) and t.ndim == first.ndim and t.numel() for t in tensors
    ):
        return None
    dim %= first.ndim
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    if any((*t.shape[:dim], *t.shape[dim + 1 :]) != (*shape[:dim], *shape[dim + 1 :]) for t in tensors):
        return None
    return (_fresh(tuple(shape)),)


@LAYOUTS.register(_aten.nll_loss_forward.default)
def _loss(
    scores: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: int, *_: Any
) -> _Made:
    plain = reduction and scores.ndim == 2 and scores.shape[:1] == target.shape
    return (((), ()), ((), ())) if plain else None


@LAYOUTS.register(_aten.nll_loss_backward.default)
def _loss_backward(grad: torch.Tensor, scores: torch.Tensor, *_: Any) -> _Made:
    return (_fresh(tuple(scores.shape)),) if _is_packed(scores) else None


@LAYOUTS.register(_aten.constant_pad_nd.default)
def _padded(tensor: torch.Tensor, pad: Sequence[int], *_: Any) -> _Made:
    if not _is_packed(tensor) or min(pad, default=0) < 0 or not any(pad) or len(pad) > 2 * tensor.ndim:
        return None
    shape = list(tensor.shape)
    for i in range(len(pad) // 2):
        shape[-1 - i] += pad[2 * i] + pad[2 * i + 1]
    return (_fresh(tuple(shape)),)


@LAYOUTS.register(_aten.tril.default, _aten.triu.default)
def _triangle(tensor: torch.Tensor, *_: Any) -> _Made:
    return (_fresh(tuple(tensor.shape)),) if _is_packed(tensor) and tensor.numel() else None


@LAYOUTS.register(_aten.slice_backward.default, _aten.select_backward.default)
def _cut_backward(grad: torch.Tensor, sizes: Sequence[int], *_: Any) -> _Made:
    return (_fresh(tuple(sizes)),)


@LAYOUTS.register(_aten.sum.default, _aten.mean.default)
def _total(tensor: torch.Tensor, **_: Any) -> _Made:
    return (((), ()),)


def _heads_inside(tensor: torch.Tensor) -> Layout:
    """Of an attention's [batch, heads, length, width], kept as [batch, length, heads, width]."""
    b, h, s, d = tensor.shape
    return (b, h, s, d), (s * h * d, d, h * d, 1)


@LAYOUTS.register(_aten._scaled_dot_product_flash_attention_for_cpu.default)
def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> _Made:
    out = _like(query)
    if out is None or query.ndim != 4 or key.shape != value.shape or key.shape[::3] != query.shape[::3]:
        return None
    batch, heads, length = query.shape[:3]
    return out, ((batch, heads, length), (length * heads, 1, heads))


@LAYOUTS.register(_aten._scaled_dot_product_flash_attention_for_cpu_backward.default)
def _attention_backward(
    grad: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any
) -> _Made:
    return _heads_inside(query), _heads_inside(key), _heads_inside(value)


def _plain_image(tensor: torch.Tensor) -> bool:
    return _is_packed(tensor) and tensor.ndim > 2 and min(tensor.shape[1:]) > 1


@LAYOUTS.register(_aten.native_batch_norm.default)
def _batch_norm(
    tensor: torch.Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *_: Any
) -> _Made:
    given = [t for t in (weight, bias, mean, variance) if t is not None]
    if not _plain_image(tensor) or any(tuple(t.shape) != (tensor.shape[1],) for t in given):
        return None
    own = _fresh((tensor.shape[1],)) if training else _fresh((0,))
    return _fresh(tuple(tensor.shape)), own, own


@LAYOUTS.register(_aten.native_batch_norm_backward.default)
def _batch_norm_backward(grad: torch.Tensor, tensor: torch.Tensor, *rest: Any) -> _Made:
    if not _plain_image(tensor) or not _is_packed(grad):
        return None
    own = _fresh((tensor.shape[1],))
    wanted = rest[-1]
    return _fresh(tuple(tensor.shape)) if wanted[0] else None, *(own if w else None for w in wanted[1:])


@LAYOUTS.register(_aten.native_group_norm.default)
def _group_norm(
    tensor: torch.Tensor, weight: Any, bias: Any, n: int, channels: int, area: int, groups: int, *_: Any
) -> _Made:
    if not _plain_image(tensor) or any(
        t is not None and tuple(t.shape) != (channels,) for t in (weight, bias)
    ):
        return None
    own = _fresh((n, groups))
    return _fresh(tuple(tensor.shape)), own, own


@LAYOUTS.register(_aten.native_group_norm_backward.default)
def _group_norm_backward(grad: torch.Tensor, tensor: torch.Tensor, *rest: Any) -> _Made:
    return _batch_norm_backward(grad, tensor, *rest)


@LAYOUTS.register(_aten.convolution.default)
def _convolution(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> _Made:
    n = image.ndim - 2
    if weight.ndim != image.ndim or image.shape[1] != groups * weight.shape[1]:
        return None
    if transposed or not _plain_image(image) or not _is_packed(weight) or weight.shape[1] < 2:
        return None
    if any(len(given) != n for given in (stride, padding, dilation)):
        return None
    sizes = [
        (size + 2 * pad - wide * (taps - 1) - 1) // step + 1
        for size, pad, wide, taps, step in zip(
            image.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    return (_fresh((image.shape[0], weight.shape[0], *sizes)),) if min(sizes) > 1 else None


@LAYOUTS.register(_aten.convolution_backward.default)
def _convolution_backward(
    grad: torch.Tensor,
    image: torch.Tensor,
    weight: torch.Tensor,
    bias_sizes: Sequence[int] | None,
    *rest: Any,
) -> _Made:
    wanted = rest[-1]
    if not _plain_image(image) or not _is_packed(weight) or not _plain_image(grad) or weight.shape[1] < 2:
        return None
    return (
        _fresh(tuple(image.shape)) if wanted[0] else None,
        _fresh(tuple(weight.shape)) if wanted[1] else None,
        _fresh((weight.shape[0],)) if wanted[2] else None,
    )
