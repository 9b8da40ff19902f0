"""Softmax of attention where a fused kernel does not take its shape."""

from __future__ import annotations

from costmodel.graph.model_graph import Operator, Phase, TensorInfo, TensorRole
from costmodel.graph.softmax import written_out_softmax

BATCH, HEADS, SEQ = 1, 2, 64


def softmax(phase: Phase, *, heads: int = HEADS, target: str = "", dtype: str = "fp16") -> Operator:
    elements = BATCH * heads * SEQ * SEQ
    forward = phase is Phase.FORWARD
    return Operator(
        index=3,
        target=target or ("aten._safe_softmax.default" if forward else "aten._softmax_backward_data.default"),
        kind="softmax",
        variant="fwd" if forward else "bwd",
        dtype=dtype,
        dims={"rows": BATCH * heads * SEQ, "cols": SEQ, "bytes": 4 * elements},
        flop=5 * elements,
        bytes_read=2 * elements,
        bytes_written=2 * elements,
        inputs=(0,),
        outputs=(1,),
        phase=phase,
        module="h.0.attn",
    )


def written(op: Operator, *, multiple: int = 4, keys: int = 2048) -> tuple[Operator, ...]:
    tensor = TensorInfo(
        index=1, shape=(BATCH, 16, SEQ, SEQ), dtype="fp16", role=TensorRole.ACTIVATION, size_bytes=0
    )
    return written_out_softmax([op], {1: tensor}, batch_multiple=multiple, max_keys=keys)


def test_samples_times_heads_of_this_rank_decide() -> None:
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        assert len(written(softmax(phase, heads=4))) == 1
        assert len(written(softmax(phase, heads=2))) == 5
        assert len(written(softmax(phase, heads=2), multiple=2)) == 1


def test_rows_longer_than_the_kernel_takes_are_written_out() -> None:
    op = softmax(Phase.FORWARD, heads=4)
    assert len(written(op, keys=SEQ - 1)) > 1
    assert len(written(op, keys=SEQ)) == len(written(op, keys=0)) == 1


def test_steps_move_more_in_the_same_place_of_the_graph() -> None:
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        op = softmax(phase)
        steps = written(op)
        assert sum(step.kind == "softmax" for step in steps) == 1
        assert {step.index for step in steps} == {op.index}
        assert {step.phase for step in steps} == {phase}
        assert sum(step.dims["bytes"] for step in steps) > 4 * op.dims["bytes"]


def test_the_loss_and_single_precision_stay_as_they_are() -> None:
    for op in (
        softmax(Phase.FORWARD, target="aten._to_copy.default + aten._log_softmax.default"),
        softmax(Phase.FORWARD, dtype="fp32"),
    ):
        assert written(op) == (op,)
