"""Peaks and widths of dtypes; the datasheet file."""

from __future__ import annotations

import pytest

from costmodel.hardware.datasheets import datasheets, find_datasheet
from costmodel.hardware.device import (
    cache_bytes,
    dtype_fallbacks,
    element_bytes,
    has_matrix_units,
    peak_flop_per_s,
    product_dtype,
    product_flop_per_s,
    weight_bytes,
)
from tests.costmodel.hardware.devices import device


def test_peaks_fall_to_wider_units() -> None:
    a100, v100 = device("A100-SXM4-80GB"), device("V100-SXM2-32GB")
    assert peak_flop_per_s(a100, "bf16") == 312e12
    assert peak_flop_per_s(a100, "fp8_block") == 312e12  # no fp8 units: bf16 ones
    assert peak_flop_per_s(v100, "bf16") == 15.7e12  # no bf16 units: fp32 ones
    assert peak_flop_per_s(device("H100-SXM5-80GB"), "fp8_block") == 1979e12
    assert peak_flop_per_s(a100, "bf16+fp8kv") == 312e12


@pytest.mark.parametrize(
    ("name", "dtype", "computed_in", "peak"),
    [
        ("A100-SXM4-80GB", "fp32", "fp32", 19.5e12),
        ("A100-SXM4-80GB", "tf32", "tf32", 156e12),
        ("A100-SXM4-80GB", "fp8", "fp8", 312e12),  # no such units: bf16 ones
        ("V100-SXM2-32GB", "bf16", "fp32", 15.7e12),
        ("GTX-1080-Ti", "fp16", "fp32", 11.34e12),  # slower in half precision than in fp32
        ("P4", "fp16", "fp32", 5.7e12),
        ("P100-PCIe-16GB", "fp16", "fp16", 19.05e12),
        ("GB200", "fp4", "fp4", 1e16),
    ],
)
def test_products_run_on_the_units_that_libraries_take(
    name: str, dtype: str, computed_in: str, peak: float
) -> None:
    assert product_dtype(device(name), dtype) == computed_in
    assert product_flop_per_s(device(name), dtype) == peak


def test_widths() -> None:
    assert (element_bytes("bf16->fp8"), element_bytes("int4_wo"), weight_bytes("int4_wo")) == (2.0, 2.0, 0.5)
    assert (cache_bytes("bf16"), cache_bytes("bf16+fp8kv")) == (2.0, 1.0)
    others = list(dtype_fallbacks("bf16+fp8kv"))
    assert others[0] == "fp16+fp8kv"
    assert "bf16" in others


def test_datasheets_are_consistent() -> None:
    spellings: dict[str, str] = {}
    for name, sheet in datasheets().items():
        assert sheet.device.name == name
        assert sheet.device.sources
        peaks = sheet.device.peak_flop_per_s
        assert peaks["fp32"] >= 1e12
        if {"fp16", "fp8"} <= set(peaks):
            assert peaks["fp8"] == pytest.approx(2 * peaks["fp16"], rel=0.02)
        for spelling in (name, *sheet.aliases):
            key = "".join(c for c in spelling.lower() if c.isalnum())
            assert spellings.setdefault(key, name) == name, spelling
    assert find_datasheet("nvidia geforce rtx 3090") == datasheets()["RTX-3090"]
    assert find_datasheet("no such card") is None


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("P100-PCIe-16GB", False),  # pairs of halves
        ("GTX-1080-Ti", False),
        ("V100-SXM2-32GB", True),
        ("T4", True),
        ("RTX-3090", True),  # at half rate
        ("H100-SXM5-80GB", True),
        ("MI100", True),
    ],
)
def test_matrix_units_are_told_by_what_nothing_else_computes(name: str, there: bool) -> None:
    assert has_matrix_units(device(name)) is there
