"""Normalisations over whole images: what a GPU's kernels move, and where they do not."""

import pytest

from costmodel.framework import load_framework
from costmodel.graph.model_graph import Operator, Phase
from costmodel.hardware.store import load_profile
from costmodel.predict.image_norms import whole_image_norms
from costmodel.predict.pricing import price_operators

READ, WRITTEN = 1 << 30, 1 << 29


def norm(
    target: str,
    *,
    phase: Phase = Phase.FORWARD,
    read: int = WRITTEN,
    kind: str = "norm",
    arguments: dict[str, int] | None = None,
) -> Operator:
    return Operator(
        index=0, target=f"aten.{target}.default", kind=kind, variant="layernorm", dtype="fp16",
        dims={"rows": 64, "cols": 1 << 22, "bytes": read + WRITTEN}, flop=0, bytes_read=read,
        bytes_written=WRITTEN, inputs=(), outputs=(), phase=phase, module="", arguments=arguments or {},
    )  # fmt: skip


def moved(op: Operator) -> int:
    (seen,) = whole_image_norms([op])
    return seen.dims["bytes"]


def test_operands_are_read_twice() -> None:
    assert moved(norm("native_batch_norm")) == 3 * WRITTEN
    assert moved(norm("native_batch_norm_backward", phase=Phase.BACKWARD, read=READ)) == 5 * WRITTEN
    assert moved(norm("native_group_norm")) == 3 * WRITTEN


def test_kept_statistics_and_tokens_are_as_they_were() -> None:
    for op in (norm("native_batch_norm", arguments={"once": 1}), norm("native_layer_norm")):
        assert whole_image_norms([op]) == [op]
    others = [norm("native_layer_norm"), norm("relu", kind="elementwise")]
    assert whole_image_norms(others) is others


def test_groups_turn_images_that_have_their_channels_last() -> None:
    last = {"channels_last": 1}
    assert moved(norm("native_group_norm", arguments=last)) == 5 * WRITTEN
    backward = norm("native_group_norm_backward", phase=Phase.BACKWARD, read=READ, arguments=last)
    assert moved(backward) == 7 * WRITTEN
    assert moved(norm("native_batch_norm", arguments=last)) == 3 * WRITTEN


@pytest.mark.parametrize(("hardware", "passes"), [("rtx-3090", 3), ("xeon-8168-x2", 2)])
def test_only_kernels_of_gpus_read_twice(hardware: str, passes: int) -> None:
    profile, framework = load_profile(hardware), load_framework("pytorch-amp")
    once = norm("native_batch_norm", arguments={"once": 1})
    stream = norm("mul", kind="elementwise", read=(passes - 1) * WRITTEN)
    times = [
        float(price_operators([op], profile, framework).device_s[0])
        for op in (norm("native_batch_norm"), once)
    ]
    if passes == 2:
        assert times[0] == times[1]
    else:
        least_s = (stream.bytes_read + WRITTEN) / profile.device.memory_bytes_per_s
        assert least_s < times[0] < 1.5 * least_s
