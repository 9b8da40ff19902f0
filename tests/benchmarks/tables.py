"""Operator tables made by the forms themselves, as large as one likes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from costmodel.hardware.datasheets import datasheets
from costmodel.hardware.forms.evaluate import form_of

__all__ = ["write_gemm_table"]

_COLUMNS = ("gpu", "dtype", "op", "m", "n", "k", "batch", "latency_us", "source", "framework", "timing")


def write_gemm_table(
    path: Path, n_rows: int, gpus: tuple[str, ...], dtypes: tuple[str, ...], noise: float = 0.04
) -> Path:
    """A CSV of `n_rows` GEMM times, dealt evenly over GPUs and dtypes, with log-normal noise."""
    rng = np.random.default_rng(0)
    form = form_of("gemm")
    groups = [(gpu, dtype) for gpu in gpus for dtype in dtypes]
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        for number, (gpu, dtype) in enumerate(groups):
            n = n_rows // len(groups) + (number < n_rows % len(groups))
            device = datasheets()[gpu].device
            dims = {name: np.ceil(np.exp2(rng.uniform(3.0, 14.0, n))) for name in ("m", "n", "k")}
            theta = {p.name: p.start for p in form.parameters(device, dtype, "nt")}
            bend = np.exp(0.1 * np.sin(np.log(dims["n"])) + noise * rng.normal(size=n))
            time_us = 1e6 * form.physical(theta, device, dims, dtype, "nt") * bend
            for i in range(n):
                sizes = (int(dims[name][i]) for name in ("m", "n", "k"))
                writer.writerow(
                    (gpu, dtype, "linear", *sizes, 1, f"{time_us[i]:.4f}", "made", "lib-1.0", "cuda_graph")
                )
    return path
