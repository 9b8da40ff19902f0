"""Convolution: the algorithms' closed forms, which one is quicker where, and the CPU's own formula."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.hardware.forms.conv import ConvForm
from costmodel.hardware.forms.conv_shapes import gemm_sizes, output_sides
from tests.costmodel.hardware.devices import device

FORM = ConvForm()
GPU = device("A100-PCIe-80GB")


def _dims(
    batch: int, c_in: int, c_out: int, side: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> dict[str, np.ndarray]:
    sizes = {
        "batch": batch,
        "c_in": c_in,
        "c_out": c_out,
        "h": side,
        "w": side,
        "kh": kernel,
        "kw": kernel,
        "stride": stride,
        "padding": kernel // 2,
        "groups": groups,
        "transposed": 0,
    }
    return {name: np.array([float(value)]) for name, value in sizes.items()}


def _ideal() -> dict[str, float]:
    """Products at the peak in whole waves, everything else free."""
    theta = {p.name: p.start for p in FORM.parameters(GPU, "fp32", "fwd")}
    free = {name: 1e-15 for name in theta if name.endswith(("_s", "_start"))}
    whole = {name: 1.0 for name in theta if "_efficiency" in name or "x" in name} | {"wave_sharpness": 1.0}
    return theta | free | whole | {"memory_efficiency": 1e6, "transform_efficiency": 1e6}


def _algorithms_s(dims: dict[str, np.ndarray], dtype: str = "fp32", variant: str = "fwd") -> dict[str, float]:
    found = FORM.algorithms_s(_ideal(), GPU, dims, dtype, variant)
    return {name: float(time_s[0]) for name, time_s in found.items()}


def test_winograd_saves_the_multiplications_of_its_paper() -> None:
    # sizes that fill whole tiles, blocks and many waves of 108 multiprocessors
    dims = _dims(108, 512, 1024, 128)
    direct_s = float(FORM.flop(dims, "fwd")[0]) / GPU.peak_flop_per_s["fp32"]
    times_s = _algorithms_s(dims)
    assert times_s["implicit_gemm"] == pytest.approx(direct_s, rel=0.01)
    assert times_s["fused_winograd"] == pytest.approx(16 / 36 * direct_s, rel=0.01)
    assert times_s["staged_winograd"] == pytest.approx(36 / 144 * direct_s, rel=0.01)


def test_small_images_pay_for_whole_tiles_of_outputs() -> None:
    # 5 x 5 outputs: 9 tiles of 2 x 2 (36 outputs), 4 of 4 x 4 (64 outputs)
    times_s = _algorithms_s(_dims(108 * 32, 512, 1024, 5))
    ratio = times_s["staged_winograd"] / times_s["fused_winograd"]
    assert ratio == pytest.approx((64 * 36 / 144) / (36 * 16 / 36), rel=0.02)


def test_fft_multiplies_frequencies() -> None:
    # 30 x 30 outputs: one image of 32 x 32, 32 * 17 frequencies, four real products each
    dims = _dims(64 * 108, 512, 64, 30)
    flop = 2 * 4 * 32 * 17 * float(dims["batch"][0]) * 512 * 64
    assert _algorithms_s(dims)["fft"] == pytest.approx(flop / GPU.peak_flop_per_s["fp32"], rel=0.01)


def test_only_three_by_three_of_stride_one_has_winograd() -> None:
    for dims in (
        _dims(8, 64, 64, 56, kernel=1),
        _dims(8, 64, 64, 56, kernel=5),
        _dims(8, 64, 64, 56, stride=2),
    ):
        assert _algorithms_s(dims)["fused_winograd"] == np.inf
        assert np.isfinite(_algorithms_s(dims)["implicit_gemm"])
    assert set(_algorithms_s(_dims(8, 64, 64, 56), "bf16")) == {"implicit_gemm"}
    assert set(_algorithms_s(_dims(8, 64, 64, 56), "fp32", "wgrad")) == {"implicit_gemm"}


def test_many_channels_take_the_staged_few_the_fused_and_none_the_implicit() -> None:
    theta = {p.name: p.start for p in FORM.parameters(GPU, "fp32", "fwd")}

    def quickest(c_in: int, c_out: int) -> str:
        found = FORM.algorithms_s(theta, GPU, _dims(64, c_in, c_out, 56), "fp32", "fwd")
        return min(found, key=lambda name: float(found[name][0]))

    assert quickest(1024, 1024) == "staged_winograd"
    assert quickest(256, 16) == "fused_winograd"
    assert quickest(3, 64) == "implicit_gemm"


def test_sizes_of_the_three_products_hold_the_same_work() -> None:
    dims = _dims(4, 32, 48, 20)
    work = {variant: np.prod(gemm_sizes(dims, variant)) for variant in ("fwd", "dgrad", "wgrad")}
    assert work["fwd"] == work["dgrad"] == work["wgrad"]
    assert [float(side[0]) for side in output_sides(_dims(4, 32, 48, 20, stride=2))] == [10.0, 10.0]


def test_cpu_has_a_formula_of_its_own() -> None:
    cpu = GPU.model_copy(update={"kind": "cpu"})
    names = {p.name for p in FORM.parameters(cpu, "fp32", "fwd")}
    assert "winograd_efficiency" in names
    assert "staged_efficiency" not in names
    theta = {p.name: p.start for p in FORM.parameters(cpu, "fp32", "fwd")}
    small, large = (float(FORM.physical(theta, cpu, _dims(b, 64, 64, 56), "fp32", "fwd")[0]) for b in (1, 8))
    assert 4.0 < large / small <= 8.0


def test_what_no_algorithm_avoids_is_less_than_the_direct_work() -> None:
    dims = _dims(108, 512, 1024, 128)
    flop = float(FORM.flop(dims, "fwd")[0])
    assert float(FORM.least_flop(dims, "fp32", "fwd")[0]) == pytest.approx(
        min(36 / 144, 4 * 32 * 17 / 30**2 / 9) * flop
    )
    assert float(FORM.least_flop(dims, "bf16", "fwd")[0]) == flop
    strided = _dims(8, 64, 64, 56, stride=2)
    assert FORM.least_flop(strided, "fp32", "fwd")[0] == FORM.flop(strided, "fwd")[0]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["fwd", "dgrad", "wgrad"])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_groups_are_never_slower_than_the_dense_layer(dtype: str, variant: str, kernel: int) -> None:
    """But for gradients of depthwise weights, which have kernels of their own."""
    theta = {p.name: p.start for p in FORM.parameters(GPU, dtype, variant)}
    times_s = [
        float(FORM.physical(theta, GPU, _dims(32, 256, 256, 28, kernel, groups=g), dtype, variant)[0])
        for g in (1, 2, 4, 32, 128 if variant == "wgrad" else 256)
    ]
    assert max(times_s[1:]) <= 1.05 * times_s[0]  # a last wave of smaller blocks may idle more
    assert times_s[-1] <= (0.5 if kernel > 1 and variant != "wgrad" else 1.0) * times_s[0]


def test_one_channel_per_group_streams_or_fetches() -> None:
    theta = _ideal() | {"memory_efficiency": 1.0}
    dims = _dims(64, 512, 512, 56, groups=512)
    elements = 2 * 64 * 512 * 56 * 56 + 512 * 9
    assert float(FORM.algorithms_s(theta, GPU, dims, "fp32", "fwd")["direct"][0]) == pytest.approx(
        4 * elements / GPU.memory_bytes_per_s, rel=0.15
    )
    # a kernel of 31 x 31: 32 operands a clock on each multiprocessor
    dims = _dims(64, 512, 512, 56, 31, groups=512)
    products = float(FORM.flop(dims, "fwd")[0]) / 2
    fetched_s = products / (32 * GPU.multiprocessors * GPU.boost_hz)
    for variant in ("fwd", "dgrad"):
        found = FORM.algorithms_s(theta, GPU, dims, "fp32", variant)["direct"]
        assert float(found[0]) == pytest.approx(fetched_s, rel=0.01)
    forward_s, weights_s = (float(FORM.physical(theta, GPU, dims, "bf16", v)[0]) for v in ("fwd", "wgrad"))
    assert 6.0 < weights_s / forward_s < 8.0
    assert "direct" not in _algorithms_s(_dims(64, 512, 512, 56, groups=256))


def test_a_gradient_of_few_channels_goes_by_columns() -> None:
    # patches of an image: its data gradient has 3 channels, its columns 3 x 16 x 16
    theta = {p.name: p.start for p in FORM.parameters(GPU, "fp32", "dgrad")}
    dims = _dims(32, 3, 768, 224, 16, stride=16) | {"padding": np.array([0.0])}
    forward_s, gradient_s = (float(FORM.physical(theta, GPU, dims, "fp32", v)[0]) for v in ("fwd", "dgrad"))
    assert gradient_s < 1.5 * forward_s
    found = FORM.algorithms_s(theta, GPU, dims, "fp32", "dgrad")
    assert found["columns"] < 0.2 * found["implicit_gemm"]
    assert "columns" not in FORM.algorithms_s(theta, GPU, dims, "fp32", "fwd")
    # the same product runs forward where the layer is transposed
    up = {**dims, "transposed": np.array([1.0]), "h": np.array([14.0]), "w": np.array([14.0])}
    up |= {"c_in": dims["c_out"], "c_out": dims["c_in"]}
    assert float(FORM.physical(theta, GPU, up, "fp32", "fwd")[0]) == pytest.approx(gradient_s, rel=0.05)


@pytest.mark.parametrize(("kernel", "stride", "gathered"), [(3, 1, True), (1, 2, True), (1, 1, False)])
def test_operands_on_matrix_units_are_gathered_from_images(kernel: int, stride: int, gathered: bool) -> None:
    # 256 FLOP an element and 2,048 FLOP a clock: 128 x 128 blocks need 32 bytes a clock, gathered
    # beside the products: both take as long, as two sides of a roofline that overlap in part
    dims = _dims(108, 512, 1024, 128, kernel, stride)
    least = FORM.algorithms_s(_ideal(), GPU, dims, "bf16", "fwd")["implicit_gemm"]
    theta = _ideal() | {"gathered_bytes_per_clock": 32.0}
    found = FORM.algorithms_s(theta, GPU, dims, "bf16", "fwd")["implicit_gemm"]
    assert found / least == pytest.approx(2.0 ** (1 / 3) if gathered else 1.0, rel=0.02)
