"""Local sizes of operators, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest

from costmodel.graph.model_graph import Operator, Phase
from costmodel.sharding.local import backward_split, local_backward, local_forward, local_generic
from costmodel.sharding.placements import BROADCAST, sharded
from costmodel.sharding.strategies import Strategy


def gemm(variant: str, m: int, n: int, k: int, phase: Phase = Phase.BACKWARD) -> Operator:
    return Operator(
        index=0, target="aten.mm.default", kind="gemm", variant=variant, dtype="fp32",
        dims={"m": m, "n": n, "k": k}, flop=2 * m * n * k,
        bytes_read=4 * (m * k + k * n), bytes_written=4 * m * n,
        inputs=(), outputs=(), phase=phase, module="",
    )  # fmt: skip


FORWARD = gemm("nt", 8, 12, 20, Phase.FORWARD)
DATA, WEIGHT = gemm("nn", 8, 20, 12), gemm("tn", 12, 20, 8)


@pytest.mark.parametrize(("key", "data", "weight"), [("m", "m", "k"), ("n", "k", "m"), ("k", "n", "n")])
def test_forward_dims_in_both_gradients(key: str, data: str, weight: str) -> None:
    assert backward_split(DATA, FORWARD, key) == data
    assert backward_split(WEIGHT, FORWARD, key) == weight


def test_square_products_are_told_by_their_variant() -> None:
    square = gemm("nt", 16, 16, 16, Phase.FORWARD)
    assert backward_split(gemm("nn", 16, 16, 16), square, "n") == "k"
    assert backward_split(gemm("tn", 16, 16, 16), square, "m") == "k"


def test_columns_halve_work_and_move_what_they_must() -> None:
    strategy = Strategy(name="n", inputs=(BROADCAST, sharded(1)), outputs=(sharded(1),), splits=("n",))
    local = local_backward(DATA, FORWARD, strategy, 2)
    assert local.dims == {"m": 8, "n": 20, "k": 6}
    assert local.flop == DATA.flop // 2
    assert local.bytes_read == 4 * (8 * 6 + 6 * 20)
    assert local.bytes_written == DATA.bytes_written  # a whole-sized summand of the gradient


def test_memory_bound_rows_shrink_until_they_cannot() -> None:
    op = Operator(
        index=0, target="aten.gelu.default", kind="elementwise", variant="gelu", dtype="fp32",
        dims={"rows": 1, "cols": 64, "bytes": 512}, flop=0, bytes_read=256, bytes_written=256, inputs=(),
        outputs=(), phase=Phase.FORWARD, module="",
    )  # fmt: skip
    assert local_generic(op, 2).dims == {"rows": 1, "cols": 32, "bytes": 256}


@pytest.mark.parametrize(
    ("splits", "n", "heads", "kv_heads"),
    [(("heads", "kv_heads"), 4, 10, 1), (("heads",), 8, 5, 1), (("batch",), 2, 40, 4)],
)
def test_a_rank_attends_to_the_key_heads_of_its_own_queries(
    splits: tuple[str, ...], n: int, heads: int, kv_heads: int
) -> None:
    sizes = {"batch": 2, "heads": 40, "kv_heads": 4, "q_len": 1, "kv_len": 64, "qk_dim": 8, "v_dim": 8}
    op = replace(DATA, kind="attention", dims=sizes)
    strategy = Strategy(name="any", inputs=(), outputs=(), splits=splits)
    for local in (local_forward(op, strategy, (), (), n), local_backward(op, op, strategy, n)):
        assert (local.dims["heads"], local.dims["kv_heads"]) == (heads, kv_heads)
