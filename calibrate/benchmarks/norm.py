"""LayerNorm, RMSNorm, batch normalisation in training and group normalisation; forward and backward.

Rows are what is normalised apart: tokens, channels (batch norm), groups of a sample (group norm).
"""

from __future__ import annotations

from calibrate.benchmarks.base import Bench, Call, Case, register_benchmark
from calibrate.benchmarks.memory_bound import Function, cases_of

__all__ = ["IMAGE_NORMS", "TOKEN_NORMS", "norm_cases"]

_EPS = 1e-5
_CHANNELS = {"rows": (16, 1024), "cols": (64, 65536)}
_GROUPS = {"rows": (32, 1024), "cols": (64, 65536)}
_BATCH = 8
_GROUPS_OF_A_SAMPLE = 32
_CHANNELS_OF_A_SAMPLE = 64


@register_benchmark("norm")
def norm_cases(bench: Bench) -> list[Case]:
    """Token normalisations over the usual sizes, image normalisations over few rows and many columns."""
    wanted = bench.points(12)
    return [
        *cases_of(bench, "norm", TOKEN_NORMS, wanted),
        *cases_of(bench, "norm", IMAGE_NORMS[:2], wanted, _CHANNELS),
        *cases_of(bench, "norm", IMAGE_NORMS[2:], bench.points(10), _GROUPS),
    ]


def _layer(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    x, w = bench.rotate((rows, cols), dtype, cold=False), bench.take((cols,), dtype)
    return lambda: torch.ops.aten.native_layer_norm(x(), [cols], w, w, _EPS)


def _layer_backward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    g, x = bench.rotate((rows, cols), dtype, cold=False), bench.rotate((rows, cols), dtype)
    w = bench.take((cols,), dtype)
    _, mean, rstd = torch.ops.aten.native_layer_norm(x(), [cols], w, w, _EPS)
    backward = torch.ops.aten.native_layer_norm_backward
    return lambda: backward(g(), x(), [cols], mean, rstd, w, w, [True, True, True])


def _rms(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    x, w = bench.rotate((rows, cols), dtype, cold=False), bench.take((cols,), dtype)
    return lambda: torch.rms_norm(x(), [cols], w, _EPS)


def _image(channels: int, cols: int) -> tuple[int, int, int, int]:
    return _BATCH, channels, max(1, cols // _BATCH), 1


def _batch(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    x = bench.rotate(_image(rows, cols), dtype, cold=False)
    w, mean, variance = (torch.ones(rows, device=bench.device) for _ in range(3))
    return lambda: torch.ops.aten.native_batch_norm(x(), w, w, mean, variance, True, 0.1, _EPS)


def _batch_backward(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    g, x = bench.rotate(_image(rows, cols), dtype, cold=False), bench.rotate(_image(rows, cols), dtype)
    w = torch.ones(rows, device=bench.device)
    backward = torch.ops.aten.native_batch_norm_backward
    return lambda: backward(g(), x(), w, w, w, w, w, True, _EPS, [True, True, True])


def _group(bench: Bench, dtype: str, rows: int, cols: int) -> Call:
    import torch

    batch = max(1, rows // _GROUPS_OF_A_SAMPLE)
    side = max(1, rows * cols // (batch * _CHANNELS_OF_A_SAMPLE))
    x = bench.rotate((batch, _CHANNELS_OF_A_SAMPLE, side, 1), dtype, cold=False)
    w = bench.take((_CHANNELS_OF_A_SAMPLE,), dtype)
    return lambda: torch.group_norm(x(), _GROUPS_OF_A_SAMPLE, w, w, _EPS)


TOKEN_NORMS = (
    Function(variant="layernorm", tensors=2, make=_layer),
    Function(variant="bwd", tensors=3, make=_layer_backward, saved=False),
    Function(variant="rmsnorm", tensors=2, make=_rms),
)
IMAGE_NORMS = (
    Function(variant="batchnorm", tensors=2, make=_batch),
    Function(variant="bwd", tensors=3, make=_batch_backward, saved=False),
    Function(variant="groupnorm", tensors=2, make=_group),
)
