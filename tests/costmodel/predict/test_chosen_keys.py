"""Chosen keys: what is scored, chosen and attended to."""

from __future__ import annotations

from typing import Any

import pytest

from costmodel.graph.model_graph import Operator, Phase, Segment
from costmodel.predict.chosen_keys import ChosenKeys

_CONFIG: dict[str, Any] = {
    "index_topk": 4,
    "index_n_heads": 2,
    "index_head_dim": 16,
    "q_lora_rank": 32,
    "hidden_size": 64,
}


def _call(kind: str, variant: str, **dims: int) -> Operator:
    return Operator(
        index=0,
        target=kind,
        kind=kind,
        variant=variant,
        dtype="bf16",
        dims=dims,
        flop=0,
        bytes_read=0,
        bytes_written=0,
        inputs=(),
        outputs=(),
        phase=Phase.FORWARD,
        module="",
    )


_PRODUCT = _call("gemm", "nt", m=1, n=1, k=1)
_STREAM = _call("elementwise", "copy", rows=1, cols=1, bytes=1)


def _few() -> ChosenKeys:
    found = ChosenKeys.of(_CONFIG)
    assert found is not None
    return found


def test_a_model_without_a_scorer_attends_to_all_keys() -> None:
    assert ChosenKeys.of({"hidden_size": 64}) is None
    assert not _few().attends(4)
    assert _few().attends(5)


@pytest.mark.parametrize(("tokens", "context"), [(1, 9), (6, 6), (3, 12), (12, 12)])
def test_every_query_attends_to_its_own_keys_and_scores_all_before_it(tokens: int, context: int) -> None:
    few = _few()
    op = _call("attention", "fwd", batch=1, q_len=1, kv_len=1, heads=4, kv_heads=4, qk_dim=8, v_dim=8)
    segment = Segment.__new__(Segment)
    object.__setattr__(segment, "operators", ())
    own = few.attention(segment, op, requests=2, tokens=tokens, context=context, cache="")
    keys = [min(few.keys, before) for before in range(context - tokens + 1, context + 1)]
    assert own.dims["batch"] == 2 * tokens
    assert own.dims["q_len"] == 1
    assert own.dims["kv_len"] == pytest.approx(sum(keys) / tokens, abs=0.5)

    scored = few.scores(_PRODUCT, requests=2, tokens=tokens, context=context).dims
    pairs = 2 * sum(range(context - tokens + 1, context + 1))
    assert scored["m"] * scored["n"] * scored["k"] == pytest.approx(
        pairs * few.heads * few.width, rel=1.0 / scored["n"]
    )
    chosen = few.choice(_STREAM, requests=2, tokens=tokens, context=context).dims
    assert chosen["bytes"] == 4 * scored["m"] * scored["n"]


def test_kernels_of_every_pass_are_linear_in_tokens() -> None:
    few = _few()
    one, ten = (few.kernels(_PRODUCT, _STREAM, n) for n in (1, 10))
    assert [op.kind for op in one] == [op.kind for op in ten]
    assert [op.dims["m"] for op in ten if op.kind == "gemm"] == [10, 10, 10]
    assert sum(op.dims["bytes"] for op in ten if op.kind == "elementwise") == 10 * sum(
        op.dims["bytes"] for op in one if op.kind == "elementwise"
    )
