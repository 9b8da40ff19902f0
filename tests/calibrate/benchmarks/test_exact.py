"""Every operator at the size asked for: it runs, and its sample bears that size."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from calibrate.benchmarks.base import Bench
from calibrate.benchmarks.exact import exact_case

ATTENTION = {
    "batch": 2,
    "q_len": 16,
    "kv_len": 16,
    "heads": 2,
    "kv_heads": 2,
    "qk_dim": 32,
    "v_dim": 32,
    "window": 0,
    "causal": 1,
}
CONV = {
    "batch": 2,
    "c_in": 16,
    "c_out": 32,
    "h": 8,
    "w": 12,
    "kh": 3,
    "kw": 3,
    "stride": 2,
    "padding": 1,
    "groups": 1,
    "transposed": 0,
}
ROWS = {"rows": 32, "cols": 64}


def a_bench() -> Bench:
    return Bench(torch.device("cpu"), cache_bytes=1 << 20, flop_per_s=1e11, bytes_per_s=1e10, largest_s=1e-3)


@pytest.mark.parametrize(
    ("kind", "variant", "dims"),
    [
        *(("gemm", v, {"m": 24, "n": 40, "k": 56}) for v in ("nt", "nn", "tn")),
        *(("bmm", v, {"batch": 3, "m": 24, "n": 40, "k": 56}) for v in ("nt", "nn", "tn")),
        *(("attention", v, ATTENTION) for v in ("fwd", "bwd")),
        ("attention", "decode", {**ATTENTION, "q_len": 1, "kv_heads": 1}),
        *(("conv", v, CONV) for v in ("fwd", "dgrad", "wgrad")),
        *(
            ("elementwise", v, {**ROWS, "bytes": n * 4 * 32 * 64})
            for v in ("add", "mul", "relu", "gelu", "tanh", "silu_and_mul", "copy", "other")
            for n in (2, 3)
        ),
        *(("norm", v, {**ROWS, "bytes": 16384}) for v in ("layernorm", "rmsnorm", "bwd")),
        *(("softmax", v, {**ROWS, "bytes": 16384}) for v in ("fwd", "bwd")),
        *(("reduction", v, {**ROWS, "bytes": 8192}) for v in ("sum", "other")),
        ("embedding", "fwd", {**ROWS, "bytes": 2 * 8192 + 8 * 32}),
        ("embedding", "bwd", {**ROWS, "bytes": 8192 + 8 * 32 + 100 * 64 * 4}),
        *(
            ("optimizer", v, {"rows": 3, "cols": 50, "bytes": n * 4 * 150})
            for v, n in (("sgd", 3), ("adam", 7))
        ),
    ],
)
def test_it_runs_and_is_filed_as_asked(kind: str, variant: str, dims: Mapping[str, int]) -> None:
    bench = a_bench()
    case = exact_case(bench, kind, variant, "fp32", dims)
    assert case is not None
    assert (case.kind, case.variant, dict(case.dims)) == (kind, variant, dict(dims))
    case.prepare(bench)()


def test_a_backward_of_channels_is_that_of_images() -> None:
    bench, dims = a_bench(), {"rows": 16, "cols": 64, "bytes": 12288}
    calls = [exact_case(bench, "norm", "bwd", "fp32", dims, images=images) for images in (False, True)]
    assert all(case is not None for case in calls)
    tokens, images = (case.prepare(bench)() for case in calls if case is not None)
    assert [t.shape for t in tokens][:1] == [torch.Size([16, 64])]  # type: ignore[attr-defined]
    assert [t.dim() for t in images][:1] == [4]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "variant", "dims"),
    [
        ("moe", "balanced", {"num_tokens": 8}),
        ("reduction", "loss", {"rows": 1, "cols": 64, "bytes": 256}),
        ("attention", "fwd", {**ATTENTION, "kv_heads": 1}),
        ("attention", "fwd", {**ATTENTION, "window": 8}),
        ("conv", "fwd", {**CONV, "transposed": 1}),
        ("gemm", "nt", {"m": 1 << 20, "n": 1 << 12, "k": 64}),
        ("optimizer", "muon", {"rows": 3, "cols": 50, "bytes": 600}),
        ("all_reduce", "", {"size_bytes": 1024, "n_ranks": 2}),
    ],
)
def test_what_cannot_be_timed_here_is_none(kind: str, variant: str, dims: Mapping[str, int]) -> None:
    assert exact_case(a_bench(), kind, variant, "fp32", dims) is None
