"""Products whose rows do not start on the boundaries of their kernels' loads."""

from __future__ import annotations

import numpy as np
import pytest

from costmodel.hardware.alignment import aligned_share, is_multiple, whole_rows
from costmodel.hardware.forms.gemm import GemmForm
from costmodel.hardware.store import load_profile

A100 = load_profile("a100-sxm4-80gb").device
TOKENS, WIDTH, VOCABULARY = 4096.0, 1024.0, 50257.0


def _sizes(m: float, n: float, k: float) -> dict[str, np.ndarray]:
    return {"m": np.array([m]), "n": np.array([n]), "k": np.array([k])}


@pytest.mark.parametrize(
    ("variant", "sizes"),
    [
        ("nt", _sizes(TOKENS, VOCABULARY, WIDTH)),
        ("nn", _sizes(TOKENS, WIDTH, VOCABULARY)),
        ("tn", _sizes(VOCABULARY, WIDTH, TOKENS)),
    ],
)
def test_an_odd_vocabulary_slows_its_three_products(variant: str, sizes: dict[str, np.ndarray]) -> None:
    assert float(np.asarray(aligned_share(A100, "fp16", variant, sizes)).item()) < 0.6
    even = {name: np.where(size == VOCABULARY, 50304.0, size) for name, size in sizes.items()}
    assert np.all(np.asarray(aligned_share(A100, "fp16", variant, even)) == 1.0)


def test_rows_that_no_matrix_lies_along_do_not_matter() -> None:
    """The tokens of a forward product count its rows: none is longer for an odd number of them."""
    assert np.all(np.asarray(aligned_share(A100, "bf16", "nt", _sizes(1331, 2048, 1024))) == 1.0)


def test_units_without_matrices_are_not_slowed() -> None:
    assert np.all(np.asarray(aligned_share(A100, "fp32", "nt", _sizes(TOKENS, VOCABULARY, WIDTH))) == 1.0)
    p100 = load_profile("p100-pcie-16gb").device
    assert np.all(np.asarray(aligned_share(p100, "fp16", "nt", _sizes(TOKENS, VOCABULARY, WIDTH))) == 1.0)


def test_boards_with_matrix_units_at_half_rate_lose_too() -> None:
    """GeForce boards run halves at twice the rate of fp32; their products take the same kernels as A100's."""
    board = load_profile("rtx-3090").device
    odd = _sizes(TOKENS, VOCABULARY, WIDTH)
    assert np.asarray(aligned_share(board, "fp16", "nt", odd)) == pytest.approx(
        np.asarray(aligned_share(A100, "fp16", "nt", odd))
    )
    scores = {"batch": np.array([64.0])} | _sizes(197.0, 197.0, 64.0)
    share = float(np.asarray(aligned_share(board, "fp16", "nt", scores)).item())
    peaks = board.peak_flop_per_s
    assert share == pytest.approx(peaks["fp32"] / peaks["fp16"])
    assert share < 1.0


def test_types_of_a_byte_and_less_are_padded_by_who_uses_them() -> None:
    b200 = load_profile("b200").device
    for dtype in ("fp8", "nvfp4"):
        assert np.all(np.asarray(aligned_share(b200, dtype, "nt", _sizes(TOKENS, 2690, WIDTH))) == 1.0)


def test_the_further_off_the_boundary_the_slower() -> None:
    sizes = _sizes(TOKENS, 0.0, WIDTH) | {"n": np.array([4096.0, 4100.0, 4098.0, 4097.0])}
    sizes = {name: np.broadcast_to(size, (4,)) for name, size in sizes.items()}
    share = np.asarray(aligned_share(A100, "bf16", "nt", sizes))
    assert share[0] == 1.0
    assert np.all(np.diff(share) < 0.0)


def test_padding_a_vocabulary_pays() -> None:
    """Compute-bound: more columns take less time where they end on a boundary."""
    form = GemmForm()
    theta = {p.name: p.start for p in form.parameters(A100, "fp16", "nt")}
    odd, padded = (
        form.physical(theta, A100, _sizes(TOKENS, n, WIDTH), "fp16", "nt").item() for n in (50257.0, 50304.0)
    )
    assert padded < 0.7 * odd


def test_batches_of_unaligned_rows_run_without_matrix_units() -> None:
    """Unfused attention with heads of 108 elements: multiples of 8 bytes, not of 16."""
    heads = {"batch": np.array([64.0, 1.0])} | {
        name: np.full(2, size) for name, size in (("m", 2048.0), ("n", 2048.0), ("k", 108.0))
    }
    share = np.asarray(aligned_share(A100, "fp16", "nt", heads))
    peaks = A100.peak_flop_per_s
    assert share[0] == pytest.approx(peaks["fp32"] / peaks["fp16"])
    assert share[0] < 0.1 < share[1]
    aligned = {**heads, "k": np.full(2, 112.0)}
    assert np.all(np.asarray(aligned_share(A100, "fp16", "nt", aligned)) == 1.0)


def test_multiples_are_those_of_the_remainder() -> None:
    sizes = np.concatenate([np.arange(1.0, 200.0), np.array([0.5, 2.0**40, 2.0**40 + 1.0, 1e12 + 8.0])])
    for period in (1.0, 4.0, 8.0):
        assert is_multiple(sizes, period).tolist() == (sizes % period == 0.0).tolist()


@pytest.mark.parametrize("variant", ["nt", "nn", "tn"])
def test_operands_filled_up_lose_nothing_and_grow_by_less_than_a_load(variant: str) -> None:
    odd = {"m": np.array([1023.0]), "n": np.array([VOCABULARY]), "k": np.array([769.0])}
    for dtype, elements in (("bf16", 8.0), ("fp16", 8.0)):
        filled = whole_rows(dtype, variant, odd)
        assert np.all(np.asarray(aligned_share(A100, dtype, variant, filled)) == 1.0)
        assert all(0.0 <= (filled[name] - odd[name]).item() < elements for name in odd)
        again = whole_rows(dtype, variant, filled)
        assert all(np.array_equal(filled[name], again[name]) for name in odd)
