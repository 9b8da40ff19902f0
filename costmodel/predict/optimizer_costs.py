"""The optimizer's update of a rank's parameters, and the state it keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from costmodel.errors import UsageError
from costmodel.estimate import FloatArray
from costmodel.hardware.pricing import contended_s, operator_times
from costmodel.predict.pricing import host_cost_s

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.hardware.schema import HardwareProfile

__all__ = [
    "OPTIMIZERS",
    "Traffic",
    "optimizer_s",
    "optimizer_variant",
    "orthogonalisation_s",
    "state_bytes_per_parameter",
    "update_bytes",
    "update_sizes",
    "written_out_s",
]


class Traffic:
    """fp32 tensors of a parameter's size that one update reads and writes, and those it keeps."""

    __slots__ = ("foreach", "kept", "read", "rooted", "updates", "variant", "written")

    def __init__(
        self, variant: str, *, read: int, written: int, kept: int, rooted: bool = False, foreach: int = 0
    ) -> None:
        self.variant = variant
        self.read = read
        self.written = written
        self.kept = kept
        self.rooted = rooted
        """Whether the update makes a root of a tensor's size on its way."""
        self.foreach = foreach or read + written
        """Tensors read and written by torch's foreach kernels, one for each step of the update."""
        self.updates = bool(written)
        """Whether there is an update at all; else forward and backward are the step."""


OPTIMIZERS = {
    "sgd": Traffic("sgd", read=2, written=1, kept=0),
    "adam": Traffic("adam", read=4, written=3, kept=2, rooted=True, foreach=18),
    "adamw": Traffic("adam", read=4, written=3, kept=2, rooted=True, foreach=20),
    "adafactor": Traffic("adafactor", read=2, written=1, kept=0),
    "muon": Traffic("muon", read=3, written=2, kept=1),
    "none": Traffic("none", read=0, written=0, kept=0),
}
"""Adam: reads parameter, gradient, both moments; writes parameter and moments (Kingma & Ba, Alg. 1). Its
foreach kernels (torch/optim/adam.py, _multi_tensor_adam): decay 2 (AdamW alone), lerp 3, mul 2, addcmul 3,
sqrt 2, div 2, add 2, addcdiv 4. none: a step of forward and backward alone: its gradients stay, and the next
backward adds to them."""


_NEWTON_SCHULZ_STEPS = 5


def optimizer_variant(name: str) -> Traffic:
    """The traffic of an optimizer. Raises UsageError on an unknown name."""
    try:
        return OPTIMIZERS[name.lower()]
    except KeyError:
        raise UsageError(f"unknown optimizer {name!r}; there are: {', '.join(OPTIMIZERS)}") from None


def state_bytes_per_parameter(name: str, framework: FrameworkProfile) -> float:
    """Optimizer bytes per parameter: the framework's figure is for Adam; others keep fewer moments, none
    nothing."""
    if not optimizer_variant(name).updates:
        return 0.0
    moments_missing = OPTIMIZERS["adam"].kept - optimizer_variant(name).kept
    return max(0.0, framework.optimizer_state_bytes - 4.0 * moments_missing)


def update_bytes(elements: Sequence[int], name: str, *, looped: bool) -> int:
    """Temporary bytes of an update of tensors with these element counts, on top of the optimizer's state.

    Adam makes the root of its second moment: for all tensors at once (torch's `foreach`, its way on a GPU),
    or `looped`, tensor by tensor, twice (the root and its quotient).
    """
    if not optimizer_variant(name).rooted or not elements:
        return 0
    return 4 * (2 * max(elements) if looped else sum(elements))


def orthogonalisation_s(shapes: Sequence[Sequence[int]], name: str, profile: HardwareProfile) -> float:
    """Seconds of the matrix products of an update of parameters with these shapes; 0 but for Muon.

    Muon takes each matrix [m, n], m <= n, through five Newton-Schulz steps in bf16: X X^T, its square and
    its product with X (torch.optim.Muon; arXiv 2502.16982, section 2.1).
    """
    matrices = [sorted(s) for s in shapes if len(s) == 2]
    if optimizer_variant(name).variant != "muon" or not matrices:
        return 0.0
    m, n = (np.array([s[i] for s in matrices], dtype=np.float64) for i in (0, 1))
    products = (("nt", m, m, n), ("nn", m, m, m), ("nn", m, n, m))
    total = 0.0
    for layout, rows, cols, inner in products:
        dims = {"m": rows, "n": cols, "k": inner}
        total += float(operator_times(profile, "gemm", layout, "bf16", dims).median_s.sum())
    return _NEWTON_SCHULZ_STEPS * total


def update_sizes(elements: Sequence[int], name: str, profile: HardwareProfile) -> dict[str, FloatArray]:
    """Sizes [n] of the calls that update tensors with these element counts: tensors of one size together on
    a CPU (one tensor after another: a large one leaves the cache), else all as of their mean size."""
    traffic = optimizer_variant(name)
    looped = profile.device.kind == "cpu"
    sizes = Counter(elements) if looped else {sum(elements) / len(elements): len(elements)}
    cols = np.array(list(sizes), dtype=np.float64)
    rows = np.array(list(sizes.values()), dtype=np.float64)
    return {"rows": rows, "cols": cols, "bytes": 4.0 * rows * cols * (traffic.read + traffic.written)}


def optimizer_s(
    elements: Sequence[int],
    name: str,
    profile: HardwareProfile,
    *,
    fused: bool = True,
    n_dtensors: int = 0,
    utilisation: float = 1.0,
) -> tuple[float, float]:
    """Seconds of one update of tensors with these element counts, and its spread of ln(time).

    `fused`: one kernel updates them; else a GPU runs one for each step of the update (torch's default),
    unless its profile measured whole updates.
    `n_dtensors` of them are DTensors, which dispatch each of the update's operators once more.
    `utilisation`: the fraction of time that neighbours on the same memory are busy.
    """
    traffic = optimizer_variant(name)
    if not elements or not traffic.updates:
        return 0.0, 0.0
    dims = update_sizes(elements, name, profile)
    if not fused and profile.device.kind != "cpu" and not _measured(profile):
        dims["bytes"] = dims["bytes"] * traffic.foreach / (traffic.read + traffic.written)
    estimate = operator_times(profile, "optimizer", traffic.variant, "fp32", dims)
    waiting_s = contended_s(profile, "optimizer", traffic.variant, "fp32", dims, estimate.median_s)
    update_s = float((estimate.median_s - waiting_s * (1.0 - utilisation)).sum())
    dispatch_s = n_dtensors * host_cost_s(profile, "dtensor_update_s")
    longest = int(np.argmax(estimate.median_s))
    return update_s + dispatch_s, float(estimate.log_sigma[longest])


def _measured(profile: HardwareProfile) -> bool:
    return any(fit.kind == "optimizer" for fit in profile.operators)


def written_out_s(elements: Sequence[int], profile: HardwareProfile, framework: FrameworkProfile) -> float:
    """Seconds of an update that runs tensor by tensor and operator by operator on a device with a queue.

    A tensor of n elements takes the longer of `update_kernels` dispatches and `update_passes` passes over its
    fp32 values, at the speed of an addition (three passes).
    """
    sizes = Counter(elements)
    n = np.array(list(sizes), dtype=np.float64)
    dims = {"rows": np.ones_like(n), "cols": n, "bytes": 12.0 * n}
    add_s = operator_times(profile, "elementwise", "add", "fp32", dims).median_s
    device_s = framework.update_passes / 3.0 * add_s
    host_s = framework.update_kernels * framework.update_kernel_s
    return float(np.maximum(device_s, host_s) @ np.array(list(sizes.values()), dtype=np.float64))
