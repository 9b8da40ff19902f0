"""Answers by rules beside those of torch's own fake tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensor

from costmodel.graph import fake_calls
from costmodel.graph.fake_calls import FakeCalls
from costmodel.graph.tracing import fake_mode

aten = torch.ops.aten
SIZES = st.integers(1, 5)
Case = Callable[[int, int, int, int], tuple[Any, ...]]


def t(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


CASES: dict[str, tuple[Any, Case]] = {
    "mm": (aten.mm.default, lambda a, b, c, d: (t(a, b), t(c, b).t())),
    "addmm": (aten.addmm.default, lambda a, b, c, d: (t(c), t(a, b), t(b, c))),
    "bmm": (aten.bmm.default, lambda a, b, c, d: (t(a, b, c), t(a, d, c).transpose(1, 2))),
    "baddbmm": (aten.baddbmm.default, lambda a, b, c, d: (t(a, 1, d), t(a, b, c), t(a, c, d))),
    "add": (aten.add.Tensor, lambda a, b, c, d: (t(a, b, c, d).transpose(1, 2), t(a, c, b, d))),
    "bias": (aten.add.Tensor, lambda a, b, c, d: (t(a, b, c), t(c))),
    "rotary": (aten.mul.Tensor, lambda a, b, c, d: (t(a, c, b, d).transpose(1, 2), t(1, 1, c, d))),
    "weighted": (aten.mul.Tensor, lambda a, b, c, d: (t(b, c, dtype=torch.bfloat16), t(a, b, c))),
    "number": (aten.mul.Tensor, lambda a, b, c, d: (t(a, b, dtype=torch.int64), 0.5)),
    "zero dimensions": (aten.div.Tensor, lambda a, b, c, d: (t(a, b), t())),
    "expanded": (aten.div.Scalar, lambda a, b, c, d: (t(a, b, 1).expand(a, b, c), 3)),
    "image": (aten.relu.default, lambda a, b, c, d: (t(a, c, d, b).permute(0, 3, 1, 2),)),
    "compared": (aten.le.Tensor, lambda a, b, c, d: (t(a, 1), t(1, b))),
    "in place": (aten.add_.Tensor, lambda a, b, c, d: (t(a, b), t(b))),
    "filled": (aten.bernoulli_.float, lambda a, b, c, d: (t(a, b), 0.9)),
    "view": (aten.view.default, lambda a, b, c, d: (t(a, b, c, d).transpose(0, 1), [b, a, c * d])),
    "heads": (aten.view.default, lambda a, b, c, d: (t(a, b, 3 * c * d)[..., : c * d], [a, b, c, d])),
    "split": (aten.split.Tensor, lambda a, b, c, d: (t(a, 2 * b), b, 1)),
    "slice": (aten.slice.Tensor, lambda a, b, c, d: (t(a, b, c), 1, 0, 2)),
    "select": (aten.select.int, lambda a, b, c, d: (t(a, b, c), 1, 0)),
    "expand": (aten.expand.default, lambda a, b, c, d: (t(1, b), [a, b])),
    "clone": (aten.clone.default, lambda a, b, c, d: (t(a, b, c, d).transpose(1, 2),)),
    "cast": (aten._to_copy.default, lambda a, b, c, d: (t(a, b, c).transpose(0, 2),)),
    "sum": (aten.sum.dim_IntList, lambda a, b, c, d: (t(a, b, c), [0, -1], True)),
    "mean": (aten.mean.dim, lambda a, b, c, d: (t(a, b, c), [-1])),
    "softmax": (aten._softmax.default, lambda a, b, c, d: (t(a, b, c), -1, False)),
    "norm": (aten.native_layer_norm.default, lambda a, b, c, d: (t(a, b, c), [c], t(c), t(c), 1e-5)),
    "half norm": (
        aten.native_layer_norm.default,
        lambda a, b, c, d: (t(a, b, c, dtype=torch.bfloat16), [c], None, None, 1e-5),
    ),
    "norm's gradient": (
        aten.native_layer_norm_backward.default,
        lambda a, b, c, d: (
            t(a, b, c),
            t(a, b, c),
            [c],
            t(a, b, 1),
            t(a, b, 1),
            t(c),
            t(c),
            [True, True, False],
        ),
    ),
    "embedding": (aten.embedding.default, lambda a, b, c, d: (t(a, b), t(c, d, dtype=torch.int64))),
    "rotated": (aten.cat.default, lambda a, b, c, d: ([t(a, b, c, 2 * d)[..., d:], t(a, b, c, d)], -1)),
    "loss": (
        aten.nll_loss_forward.default,
        lambda a, b, c, d: (t(a, b), t(a, dtype=torch.int64), None, 1, -100),
    ),
    "padded": (aten.constant_pad_nd.default, lambda a, b, c, d: (t(a, b), [0, c])),
    "batch norm": (
        aten.native_batch_norm.default,
        lambda a, b, c, d: (t(a, b, 1 + c, d), t(b), t(b), t(b), t(b), True, 0.1, 1e-5),
    ),
    "group norm": (
        aten.native_group_norm.default,
        lambda a, b, c, d: (t(a, 2 * b, c, d), t(2 * b), t(2 * b), a, 2 * b, c * d, 2, 1e-5),
    ),
    "convolution": (
        aten.convolution.default,
        lambda a, b, c, d: (
            t(a, b, 4 + c, 4 + d),
            t(c, b, 3, 3),
            t(c),
            [2, 2],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
        ),
    ),
    "convolution's gradient": (
        aten.convolution_backward.default,
        lambda a, b, c, d: (
            *(t(a, c, 3 + d, 4), t(a, b, 3 + d, 4), t(c, b, 1, 1), [c]),
            *([1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, True]),
        ),
    ),
    "attention": (
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        lambda a, b, c, d: (t(a, c, b, d).transpose(1, 2), t(a, b, c, d), t(a, b, c, d), 0.0, True),
    ),
}


def described(out: Any, arguments: tuple[Any, ...]) -> Any:
    """All that a trace reads of results."""
    if not isinstance(out, torch.Tensor):
        return [described(one, arguments) for one in out] if isinstance(out, (list, tuple)) else out
    assert isinstance(out, FakeTensor)
    assert out.fake_device == torch.device("cpu")
    own = [a for a in arguments if isinstance(a, torch.Tensor)]
    return (
        tuple(out.shape),
        out.stride(),
        out.storage_offset(),
        out.dtype,
        out.untyped_storage().nbytes(),
        out.requires_grad,
        [a is out for a in own],
        [a.untyped_storage()._cdata == out.untyped_storage()._cdata for a in own],
    )


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=12, deadline=None)
@given(sizes=st.lists(st.tuples(SIZES, SIZES, SIZES, SIZES), min_size=2, max_size=4))
def test_answers_are_torchs_own(name: str, sizes: list[tuple[int, int, int, int]]) -> None:
    func, case = CASES[name]
    mode = fake_mode()
    with mode, torch.no_grad():
        calls = FakeCalls(mode)
        for size in sizes:
            arguments = case(*size)
            assert described(calls(func, arguments, {}), arguments) == described(func(*arguments), arguments)


def test_the_mode_is_asked_once_for_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCalls, "_known", {})
    asked = []
    mode = fake_mode()
    own = type(mode).dispatch

    def dispatch(self: Any, func: Any, *rest: Any) -> Any:
        asked.append(func)
        return own(self, func, *rest)

    with mode:
        pairs = [(t(n, 8), t(8, n)) for n in (2, 3, 4)]
        monkeypatch.setattr(type(mode), "dispatch", dispatch)
        for pair in pairs:
            FakeCalls(mode)(aten.mm.default, pair, {})
    assert asked.count(aten.mm.default) == 1


def test_a_wrong_rule_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCalls, "_known", {})
    monkeypatch.setattr(fake_calls, "LAYOUTS", {aten.mm.default: lambda a, b: (((1, 1), (1, 1)),)})
    mode = fake_mode()
    with mode:
        shapes = [tuple(FakeCalls(mode)(aten.mm.default, (t(n, 8), t(8, n)), {}).shape) for n in (2, 3)]
    assert shapes == [(2, 2), (3, 3)]


@pytest.mark.parametrize(
    ("func", "shapes"),
    [
        (aten.mm.default, [(2, 3), (4, 5)]),
        (aten.add.Tensor, [(2, 3), (4,)]),
        (aten.bmm.default, [(2, 3, 4), (2, 5, 6)]),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(func: Any, shapes: list[tuple[int, ...]]) -> None:
    mode = fake_mode()
    with mode, pytest.raises(RuntimeError):
        FakeCalls(mode)(func, [t(*shape) for shape in shapes], {})
