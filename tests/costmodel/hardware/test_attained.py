"""Borrowed fits at published rates: what they are scaled to, who lends a rate, what stays."""

import json
from pathlib import Path

import numpy as np
import pytest

from costmodel.hardware.attained import at_attained_rate, attained_share
from costmodel.hardware.datasheets import datasheets
from costmodel.hardware.forms.base import load_forms
from costmodel.hardware.pricing import choose_fit, operator_times
from costmodel.hardware.store import load_profile
from costmodel.hardware.transfer import transfer_fit
from tests.costmodel.hardware.devices import device, plain_fit

SIDES = np.array([1024.0, 2048.0, 4096.0, 8192.0, 10240.0])
SQUARES = {"batch": np.ones(5), "m": SIDES, "n": SIDES, "k": SIDES}
BORROWED = [
    ("RTX-4090", "fp32"), ("RTX-4090", "tf32"), ("RTX-4090", "fp16"), ("RTX-3090", "fp16"),
    ("RTX-3080", "tf32"), ("H100-SXM5-80GB", "fp32"), ("H100-SXM5-80GB", "tf32"), ("A40", "fp32"),
    ("L40S", "fp32"), ("H20-96GB", "bf16"), ("V100-SXM2-16GB", "fp32"), ("RTX-5090", "bf16"),
    ("GTX-1080-Ti", "fp32"),
]  # fmt: skip


def rates(name: str, dtype: str) -> np.ndarray:
    times_s = operator_times(load_profile(name), "gemm", "nn", dtype, SQUARES).median_s
    return 2.0 * SIDES**3 / times_s


@pytest.mark.parametrize(("name", "dtype"), BORROWED)
def test_large_products_run_at_the_published_rate(name: str, dtype: str) -> None:
    share = attained_share(device(name), dtype)
    assert share is not None
    assert share.board == name
    published = share.best * device(name).peak_flop_per_s[dtype]
    assert max(rates(name, dtype)) == pytest.approx(published, rel=0.06)
    assert max(rates(name, dtype)) <= published * 1.001


def test_the_sizes_that_set_nothing_come_out_near_what_the_boards_showed() -> None:
    """Of each loop the fastest size sets the rate; README says how near the others come out."""
    table = json.loads((Path(__file__).parent / "data" / "board_loops.json").read_text())
    errors, inside = [], []
    for name, loop in table["loops"].items():
        for dtype, measured in loop["tflop_per_s"].items():
            fit = choose_fit(load_profile(name), "gemm", "nn", dtype)
            assert fit is not None
            if "products of" not in fit.source:
                continue  # measured on the board itself
            time = operator_times(load_profile(name), "gemm", "nn", dtype, SQUARES)
            shown_s = 2.0 * SIDES**3 / (np.array(measured) * 1e12)
            others = np.arange(len(SIDES)) != np.argmax(measured)
            errors.extend(np.abs(time.median_s / shown_s - 1.0)[others])
            inside.extend((np.abs(np.log(shown_s / time.median_s)) < 1.645 * time.log_sigma)[others])
    assert len(errors) > 100
    assert np.mean(errors) < 0.1
    assert np.median(errors) < 0.06
    assert np.mean(inside) > 0.9


def test_a_board_without_a_figure_takes_the_share_of_one_with_as_many_watts_for_its_peak() -> None:
    near = attained_share(device("RTX-3090-Ti"), "fp32")
    assert near is not None
    assert (near.board, near.at_most) == ("RTX-3090", False)


def test_a_lender_with_more_power_only_limits() -> None:
    share = attained_share(device("H100-PCIe-80GB"), "fp32")
    assert share is not None
    assert (share.board, share.at_most) == ("H100-SXM5-80GB", True)
    slow = plain_fit(dtype="fp32", on="A100-PCIe-40GB", compute_efficiency=0.3)
    moved = transfer_fit(slow, device("A100-PCIe-40GB"), device("H100-PCIe-80GB"))
    assert at_attained_rate(moved, device("H100-PCIe-80GB"), "fp32") == moved


def test_units_that_compute_more_per_clock_lend_nothing() -> None:
    """RTX 3080 has half of A40's tensor rate per clock and reaches more of it."""
    for name, lender in (("RTX-A5500", "RTX-A6000"), ("Titan-RTX", None)):
        share = attained_share(device(name), "fp16")
        assert (share and share.board) == lender


def test_products_that_widen_their_weights_first_stay() -> None:
    assert attained_share(device("A100-SXM4-80GB"), "fp16") is not None
    assert attained_share(device("A100-SXM4-80GB"), "int4_wo") is None


def test_what_was_measured_on_the_device_itself_stays() -> None:
    h100 = load_profile("H100-SXM5-80GB")
    for dtype in ("bf16", "fp16"):
        fit = choose_fit(h100, "gemm", "nt", dtype)
        assert fit is not None
        assert fit.transferred_from is None
        assert fit.peak_ratio == 1.0


def test_another_arithmetic_follows_the_change_of_the_share() -> None:
    fit = plain_fit("attention", "prefill", "fp16", on="A40")
    moved = transfer_fit(fit, device("A40"), device("RTX-3080"))
    there, here = attained_share(device("A40"), "fp16"), attained_share(device("RTX-3080"), "fp16")
    assert there is not None
    assert here is not None
    scaled = at_attained_rate(moved, device("RTX-3080"), "fp16").parameters["compute_efficiency"]
    ratio = scaled / moved.parameters["compute_efficiency"]
    assert ratio == pytest.approx(here.best / there.best, rel=1e-4)


def test_a_borrowed_convolution_follows_the_share_of_both_devices() -> None:
    profiles = load_profile("A100-PCIe-80GB"), load_profile("H100-SXM5-80GB")
    fits = [choose_fit(p, "conv", "fwd", "fp32") for p in profiles]
    shares = [attained_share(p.device, "fp32") for p in profiles]
    ratios = []
    for name in ("gemm_efficiency", "staged_efficiency"):
        measured, lent = (fit.parameters[name] for fit in fits if fit is not None)
        ratios.append(lent / measured)
    theirs, ours = (share.best for share in shares if share is not None)
    assert ratios == pytest.approx([ours / theirs] * 2, rel=1e-4)


def test_a_faster_what_if_of_a_board_keeps_its_share() -> None:
    board = device("RTX-4090")
    twice = board.model_copy(
        update={"peak_flop_per_s": {dtype: 2.0 * rate for dtype, rate in board.peak_flop_per_s.items()}}
    )
    assert attained_share(twice, "fp32") == attained_share(board, "fp32")


def test_kinds_without_arithmetic_stay() -> None:
    fit = plain_fit("softmax", "fwd", "fp32", on="A40")
    assert at_attained_rate(fit, device("RTX-4090"), "fp32") == fit


def test_every_board_of_the_table_is_known() -> None:
    load_forms()
    for name, sheet in datasheets().items():
        for dtype in sheet.device.peak_flop_per_s:
            share = attained_share(sheet.device, dtype)
            assert share is None or 0.03 < share.best < 1.25, (name, dtype)
