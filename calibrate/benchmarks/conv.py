"""Convolution: forward, data gradient, weight gradient, over the layers of image networks."""

from __future__ import annotations

from calibrate.benchmarks.base import ITEM_BYTES, Bench, Call, Case, register_benchmark
from calibrate.benchmarks.points import log_points

__all__ = ["conv_case", "conv_cases"]

_SIZES = {"batch": (1, 64), "c_in": (16, 1024), "c_out": (16, 1024), "h": (4, 128)}
_SHAPES = (
    # kernel, stride, grouped; 3x3 and 1x1 make up nearly all layers, 7x7 stride 2 is the usual stem
    (3, 1, False),
    (1, 1, False),
    (3, 2, False),
    (3, 1, False),
    (1, 1, False),
    (1, 2, False),
    (3, 1, True),
    (7, 2, False),
)


@register_benchmark("conv")
def conv_cases(bench: Bench) -> list[Case]:
    """NCHW convolutions of random sizes; every size in all three directions."""
    cases = []
    for dtype in bench.dtypes:
        wanted, found = bench.points(36), 0
        for size in log_points(20 * wanted, _SIZES, picks={"shape": len(_SHAPES)}):
            kernel, stride, depthwise = _SHAPES[size.pop("shape")]
            if kernel == 7:
                size = {**size, "c_in": 3, "c_out": min(size["c_out"], 128)}
            if depthwise:
                size = {**size, "c_out": size["c_in"]}
            dims = {
                "batch": size["batch"],
                "c_in": size["c_in"],
                "c_out": size["c_out"],
                "h": size["h"],
                "w": size["h"],
                "kh": kernel,
                "kw": kernel,
                "stride": stride,
                "padding": kernel // 2,
                "groups": size["c_in"] if depthwise else 1,
                "transposed": 0,
            }
            if not _fits(bench, dims, ITEM_BYTES[dtype]):
                continue
            cases += [conv_case(variant, dtype, dims) for variant in ("fwd", "dgrad", "wgrad")]
            found += 1
            if found == wanted:
                break
    return cases


def _output_size(dims: dict[str, int], size: str, kernel: str) -> int:
    return (dims[size] + 2 * dims["padding"] - dims[kernel]) // dims["stride"] + 1


def _fits(bench: Bench, d: dict[str, int], item: int) -> bool:
    side = _output_size(d, "h", "kh")
    if d["h"] < d["kh"]:
        return False
    out = d["batch"] * d["c_out"] * side * side
    moved = float(item * (out + d["batch"] * d["c_in"] * d["h"] * d["w"]))
    flop = 2.0 * out * d["c_in"] // d["groups"] * d["kh"] * d["kw"]
    return moved <= bench.largest_tensor_bytes and bench.fits(flop=flop, moved_bytes=moved)


def conv_case(variant: str, dtype: str, dims: dict[str, int]) -> Case:
    """One convolution in one direction, of any height and width."""
    d = dims
    rows, cols = _output_size(d, "h", "kh"), _output_size(d, "w", "kw")

    def prepare(bench: Bench) -> Call:
        import torch

        x_shape = (d["batch"], d["c_in"], d["h"], d["w"])
        y_shape = (d["batch"], d["c_out"], rows, cols)
        w_shape = (d["c_out"], d["c_in"] // d["groups"], d["kh"], d["kw"])
        stride, padding = [d["stride"]] * 2, [d["padding"]] * 2
        w = bench.rotate(w_shape, dtype)
        x = bench.rotate(x_shape, dtype, cold=variant != "fwd")
        if variant == "fwd":
            return lambda: torch.conv2d(x(), w(), None, stride, padding, [1, 1], d["groups"])
        gradient = bench.rotate(y_shape, dtype, cold=False)
        mask = [variant == "dgrad", variant == "wgrad", False]
        backward = torch.ops.aten.convolution_backward.default
        return lambda: backward(
            gradient(), x(), w(), None, stride, padding, [1, 1], False, [0, 0], d["groups"], mask
        )

    elements = {
        "fwd": d["batch"] * d["c_out"] * rows * cols,
        "dgrad": d["batch"] * d["c_in"] * d["h"] * d["w"],
        "wgrad": d["c_out"] * d["c_in"] // d["groups"] * d["kh"] * d["kw"],
    }
    return Case(
        kind="conv",
        variant=variant,
        dtype=dtype,
        dims=dims,
        prepare=prepare,
        output_bytes=elements[variant] * ITEM_BYTES[dtype],
        saved_output=variant == "fwd",
    )
