"""Every strategy of every rule, computed rank by rank on real tensors: the parts must make up the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from costmodel.graph.model_graph import Operator, Phase
from costmodel.sharding.placements import Layout, Partial, Replicate
from costmodel.sharding.strategies import SHARDING_RULES, Call, Strategy, has_rule, rule_name, strategies_for

N = 2


def call_of(target: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor], **more: Any) -> Call:
    op = Operator(
        index=0, target=f"aten.{target}.default", kind=more.pop("kind", "elementwise"),
        variant="", dtype="fp32",
        dims=more.pop("dims", {}), flop=0, bytes_read=0, bytes_written=0, inputs=tuple(range(len(inputs))),
        outputs=(), phase=Phase.FORWARD, module="", arguments=more.pop("arguments", {}),
    )  # fmt: skip
    shapes = tuple(tuple(t.shape) for t in inputs), tuple(tuple(t.shape) for t in outputs)
    return Call(op=op, inputs=shapes[0], outputs=shapes[1], n=N, **more)


def part(tensor: torch.Tensor, layout: Layout, rank: int) -> torch.Tensor:
    """A rank's part; a summand of a partial tensor is a random share."""
    placement = layout.forward
    if isinstance(placement, Replicate):
        return tensor
    if isinstance(placement, Partial):
        share = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(7))
        return tensor * (share if rank == 0 else 1 - share)
    pieces = tensor.chunk(placement.chunks, placement.dim)
    return torch.cat([p.chunk(N, placement.dim)[rank] for p in pieces], placement.dim)


def whole(parts: list[torch.Tensor], layout: Layout, like: torch.Tensor) -> torch.Tensor:
    placement = layout.forward
    if isinstance(placement, Replicate):
        return parts[0]
    if isinstance(placement, Partial):
        return parts[0] + parts[1]
    pieces = [p.chunk(placement.chunks, placement.dim) for p in parts]
    ordered = [pieces[r][c] for c in range(placement.chunks) for r in range(N)]
    return torch.cat(ordered, placement.dim)


def check(
    target: str,
    run: Callable[..., Any],
    inputs: list[torch.Tensor],
    *,
    skip: tuple[str, ...] = (),
    **more: Any,
) -> set[str]:
    """Run every strategy on both ranks; returns the names seen."""
    result = run(*inputs)
    outputs = list(result) if isinstance(result, tuple | list) else [result]
    names = set()
    for strategy in strategies_for(call_of(target, inputs, outputs, **more)):
        names.add(strategy.name)
        if strategy.name in skip or strategy.collectives:
            continue
        _compare(strategy, run, inputs, outputs)
    return names


def _compare(
    strategy: Strategy, run: Callable[..., Any], inputs: list[torch.Tensor], outputs: list[torch.Tensor]
) -> None:
    parts = []
    for rank in range(N):
        local = [part(t, layout, rank) for t, layout in zip(inputs, strategy.inputs, strict=True)]
        result = run(*local)
        parts.append(list(result) if isinstance(result, tuple | list) else [result])
    for i, layout in enumerate(strategy.outputs):
        got = whole([p[i] for p in parts], layout, outputs[i])
        assert got.shape == outputs[i].shape, strategy
        assert torch.allclose(got, outputs[i], atol=1e-4), strategy


def r(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_products() -> None:
    packed = {(1, 1): frozenset({3}), (0, 0): frozenset({2})}
    assert {"m", "n", "k"} <= check("mm", torch.mm, [r(8, 4), r(4, 12)], packed_in=packed)
    assert {"m", "n", "k"} <= check("addmm", torch.addmm, [r(12), r(8, 4), r(4, 12)], skip=("k",))
    assert {"m", "n", "k"} <= check("linear", F.linear, [r(2, 8, 4), r(12, 4)])
    assert {"batch", "m", "n", "k"} <= check("bmm", torch.bmm, [r(4, 6, 2), r(4, 2, 8)])
    check("baddbmm", torch.baddbmm, [r(1, 6, 8), r(4, 6, 2), r(4, 2, 8)])


def test_convolutions() -> None:
    dims = {"groups": 1, "transposed": 0}
    seen = check("convolution", F.conv2d, [r(4, 6, 5, 5), r(8, 6, 3, 3)], dims=dims)
    assert {"batch", "c_out", "c_in"} <= seen
    check(
        "convolution", F.conv_transpose2d, [r(4, 6, 5, 5), r(6, 8, 3, 3)], dims={"groups": 1, "transposed": 1}
    )
    call = call_of("convolution", [r(4, 6, 5, 5), r(8, 3, 3, 3)], [r(4, 8, 3, 3)], dims={"groups": 2})
    assert {s.name for s in strategies_for(call)} == {"replicated", "batch", "groups"}


def test_attention() -> None:
    target = "_scaled_dot_product_flash_attention"
    seen = check(target, F.scaled_dot_product_attention, [r(2, 4, 6, 8), r(2, 4, 6, 8), r(2, 4, 6, 8)])
    assert {"batch", "heads", "query_rows"} <= seen


@pytest.mark.parametrize(
    ("target", "run", "shapes"),
    [
        ("add", torch.add, [(2, 4, 6), (2, 4, 6)]),
        ("add", torch.add, [(2, 4, 6), (6,)]),
        ("mul", torch.mul, [(2, 4, 6), (2, 4, 1)]),
        ("gelu", F.gelu, [(2, 4, 6)]),
        ("neg", torch.neg, [(4, 6)]),
        ("div", lambda x: x / 3, [(4, 6)]),
    ],
)
def test_pointwise(target: str, run: Callable[..., Any], shapes: list[tuple[int, ...]]) -> None:
    seen = check(target, run, [r(*s) for s in shapes])
    assert "dim0" in seen


def test_views() -> None:
    check("transpose", lambda x: x.transpose(1, 2), [r(2, 4, 6, 8)], arguments={"dim0": 1, "dim1": 2})
    check("permute", lambda x: x.permute(0, 2, 3, 1), [r(2, 4, 4, 4)], arguments={"dims": (0, 2, 3, 1)})
    check("t", torch.t, [r(4, 4)])
    check("transpose", lambda x: x.transpose(1, 2), [r(2, 4, 6)])  # told by the shapes alone
    assert "packed" in check(
        "split", lambda x: x.split(x.shape[-1] // 3, -1), [r(2, 12)], arguments={"dim": -1}
    )
    seen = check("cat", lambda a, b: torch.cat((a, b), -1), [r(2, 4, 6), r(2, 4, 6)], arguments={"dim": -1})
    assert {"dim0", "dim1", "packed"} <= seen
    grown = [torch.tensor([]), r(2, 4, 6)]
    assert "dim0" in check("cat", lambda a, b: torch.cat((a, b), 1), grown, arguments={"dim": 1})
    check("slice", lambda x: x[..., 1:3], [r(2, 4, 6)], arguments={"dim": 2})
    check("select", lambda x: x[:, 1], [r(2, 4, 6)], arguments={"dim": 1})
    check("expand", lambda x: x.expand(-1, 3, -1), [r(2, 1, 4)], skip=("new1",))
    seen = check("view", lambda x: x.reshape(2, -1, 4, 3) if x.shape[0] == 2 else x.reshape(1, -1, 4, 3),
                 [r(2, 8, 12)], skip=("S(2)->S(2)",))  # fmt: skip
    assert {"S(0)->S(0)", "S(1)->S(1)", "S(2)->S(2)"} <= seen


def test_norms_reductions_and_look_ups() -> None:
    check(
        "native_layer_norm",
        lambda x, w, b: F.layer_norm(x, (6,), w, b),
        [r(2, 4, 6), r(6), r(6)],
        kind="norm",
    )
    check("_softmax", lambda x: x.softmax(-1), [r(2, 4, 6)], arguments={"dim": -1})
    assert "partial2" in check("sum", lambda x: x.sum(-1), [r(2, 4, 6)], arguments={"dim": (-1,)})
    check("amax", lambda x: x.amax(1), [r(2, 4, 6)], arguments={"dim": (1,)})
    check("max_pool2d", lambda x: F.max_pool2d(x, 2), [r(2, 4, 6, 6)])
    norm = [r(4, 6, 3, 3), r(6), r(6)]
    seen = check(
        "batch_norm", lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), norm, skip=("batch",)
    )
    assert {"batch", "channels"} <= seen
    rows = torch.tensor([3, 0, 1, 1])
    assert {"dim1", "sum"} <= check("index", lambda x, i: x[i], [r(4, 6), rows])
    index = torch.tensor([[0, 3, 5], [7, 1, 2]])
    seen = check("embedding", lambda w, i: F.embedding(i, w), [r(8, 4), index], skip=("vocabulary",))
    assert {"vocabulary", "width", "tokens"} <= seen


def test_unknown_operator_runs_whole() -> None:
    assert not has_rule("custom.op.default")
    found = strategies_for(call_of("no_such_operator", [r(4, 4)], [r(4, 4)]))
    assert [s.name for s in found] == ["replicated"]
    assert not found[0].parallel


def test_names() -> None:
    assert (
        rule_name("aten.mm.default") == rule_name("aten::mm") == rule_name("torch.ops.aten.mm") == "aten.mm"
    )
    assert len(SHARDING_RULES) > 150
