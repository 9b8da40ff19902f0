"""HardwareProfile: everything measured of one machine, as one JSON file.

Operators, host costs, network, overlap and contention; each figure with its unit in its name and its
source beside it. Pydantic models, frozen, unknown keys refused: a profile is either wholly understood or
not used.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from costmodel.hardware.learnt import Learnt
from costmodel.hardware.network_schema import NetworkModel

__all__ = [
    "FORMAT_VERSION",
    "Adjustment",
    "BorrowedFit",
    "Correction",
    "DeviceSpec",
    "Environment",
    "HardwareProfile",
    "HostValue",
    "OperatorFit",
    "Overlap",
    "RegionResidual",
    "Residual",
]

# Format history:
#   1  first format; `learnt` came later and is left out where no run taught anything
#   2  a fit may serve further variants (`OperatorFit.also_variants`); `samples_at` came later and is left out
#      of fits that speak everywhere
FORMAT_VERSION = 2

_DERIVED = "derived_from_efficiency"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DeviceSpec(_Frozen):
    """Datasheet (or, for a CPU, measured) limits of one device."""

    kind: Literal["cpu", "cuda", "rocm"]
    name: str
    architecture: str
    memory_bytes: float = Field(gt=0)
    memory_bytes_per_s: float = Field(gt=0)
    """Device memory bandwidth, one device."""
    peak_flop_per_s: dict[str, float]
    """Dense peak by dtype (fp32 tf32 fp16 bf16 fp8 nvfp4 int8); absent = the device has no unit for it."""
    multiprocessors: int = Field(gt=0)
    """Streaming multiprocessors, compute units, or the threads used on a CPU."""
    l2_bytes: float = Field(gt=0)
    """Last-level cache."""
    boost_hz: float = Field(gt=0)
    power_w: float | None = None
    """Board power limit."""
    process_nm: float | None = None
    """Name of the process node; sets how much arithmetic a watt buys."""
    host_bytes_per_s: float | None = None
    """Link between host and device, one direction."""
    sustained_speed: dict[str, float] = {}
    """Rate of products and attention over a donor's at the same datasheet peaks, by dtype: what whole runs
    tell of a device that no operator table covers."""
    long_run_flop_per_s: dict[str, float] = {}
    """Most that products reach in work that keeps the device busy for seconds (a step of training), by dtype:
    what the board's power sustains, where tables of short measurements say more."""
    sources: dict[str, str] = {}
    """Field -> where its value comes from."""


class RegionResidual(_Frozen):
    """Cross-validated error of a fit in one region of shapes."""

    region: str
    n: int
    mape: float
    bias: float
    """Mean of predicted / measured - 1."""
    log_sigma: float
    """Half the width of the band that holds 90 % of ln(measured / predicted), over Z90."""


class Residual(_Frozen):
    """Cross-validated error of a fit: no row was scored by a fit that saw its shape."""

    mape: float
    median_ape: float
    bias: float
    log_sigma: float
    """Half the width of the band that holds 90 % of ln(measured / predicted), over Z90."""
    coverage: float
    """Share of rows inside their 90 % interval."""
    folds: int
    regions: tuple[RegionResidual, ...] = ()


_BLOCK_NUMBERS = 1024
"""Most numbers of a block of a correction's centres: its product with 256 points is then short enough (2^18
multiply-adds) for OpenBLAS not to start threads of its own, which take several times what they save."""


class Correction(_Frozen):
    """Smooth correction of ln(time) over a feature space; see `costmodel.hardware.forms.correction`."""

    length: tuple[float, ...]
    """Kernel length per feature."""
    centres: tuple[tuple[float, ...], ...]
    """[c][f], in features divided by `length`."""
    weights: tuple[float, ...]
    sigmas: tuple[float, ...]
    """Spread of ln(time) around each centre."""
    far_sigma: float
    """Spread of ln(time) of the form alone, away from every sample."""
    limit: float
    """Largest size of the shift: that of the largest residual it was fitted to."""

    @cached_property
    def arrays(
        self,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
        """length [f, 1], the centres' mean [f, 1], and in b equal blocks of r centres (those missing from the
        last one count for nothing) what multiplies points [b, r, f + 2] and what is summed up over kernels
        [b, 3, r].

        Points: with d = c - mean, 3 [-2 d, 1, |d|^2] times [x, |x|^2, 1] is 3 |x - d|^2. Summed up: -e times
        weight, spread and 1, for kernels -(1 + distance) exp(-1 - distance).
        """
        centres = np.array(self.centres, dtype=np.float64).reshape(len(self.weights), len(self.length))
        origin: NDArray[np.float64] = centres.mean(axis=0)
        apart = centres - origin
        ones = np.ones((len(apart), 1))
        rows = 3.0 * np.hstack([-2.0 * apart, ones, (apart * apart).sum(1, keepdims=True)])
        columns = -math.e * np.array([self.weights, self.sigmas, ones[:, 0]])
        n_blocks = max(1, math.ceil(len(rows) / max(1, _BLOCK_NUMBERS // rows.shape[1])))
        missing = -len(rows) % n_blocks
        rows = np.vstack([rows, np.zeros((missing, rows.shape[1]))]).reshape(n_blocks, -1, rows.shape[1])
        columns = np.hstack([columns, np.zeros((3, missing))]).reshape(3, n_blocks, -1).swapaxes(0, 1)
        length = np.array(self.length, dtype=np.float64)[:, None]
        return length, origin[:, None], rows.astype(np.float32), columns.astype(np.float32, order="C")


class Adjustment(_Frozen):
    """What one framework's kernels add to the shared fit: ln(time) shift over the feature space."""

    framework: str
    n_samples: int
    correction: Correction
    """Its sigmas are those of this framework's rows around the sum of both corrections."""


class OperatorFit(_Frozen):
    """One fitted form: kind, variant and dtype under one way of timing."""

    kind: str
    variant: str
    dtype: str
    timing: str
    form: str
    """Name of the form in FORMS that `parameters` belong to."""
    parameters: dict[str, float]
    correction: Correction | None = None
    adjustments: tuple[Adjustment, ...] = ()
    residual: Residual
    n_samples: int
    source: str
    also_variants: tuple[str, ...] = ()
    """Further variants whose rows were fitted, told apart by the form."""
    samples_at: tuple[tuple[float, ...], ...] = ()
    """ln(sizes) of its samples, where it speaks near them alone (`hardware.reach`); empty = everywhere."""
    transferred_from: str | None = None
    """Name of the device whose samples were fitted, where it is not this one."""
    transfer_distance: float = 0.0
    """How unlike that device is to this one (`hardware.distance`)."""
    extra_log_sigma: float = 0.0
    """Added (in quadrature) to the spread, for what transfer leaves unknown; `update` was found with it."""
    peak_ratio: float = Field(default=1.0, gt=0)
    """The best rate of its device over the datasheet's peak, where one is known (`hardware.attained`)."""
    log_offset: float = 0.0
    """ln(time) of this machine over the one that the parameters were fitted on, at every size."""
    update: Correction | None = None
    """What later measurements at a few sizes changed near them. Its `far_sigma` is a factor: what is left of
    the fit's own spread where none of them is near."""

    def widened(self, log_sigma: float) -> OperatorFit:
        """The fit with so much more unknown, in quadrature; where later measurements changed it too."""
        update = self.update
        if update is not None:
            wider = tuple(float(f"{math.hypot(sigma, log_sigma):.4g}") for sigma in update.sigmas)
            update = update.model_copy(update={"sigmas": wider})
        extra = math.hypot(self.extra_log_sigma, log_sigma)
        return self.model_copy(update={"extra_log_sigma": extra, "update": update})

    @property
    def is_derived(self) -> bool:
        """Its times were computed from published efficiencies, not taken by a clock."""
        return self.timing == _DERIVED

    @property
    def variants(self) -> tuple[str, ...]:
        """Every variant the fit was made for."""
        return (self.variant, *self.also_variants)


class BorrowedFit(_Frozen):
    """A fit that another device's profile, in the same folder, holds; loading transfers it.

    Keeps files small: one architecture's corrections are stored once.
    """

    kind: str
    variant: str
    dtype: str
    timing: str
    donor: str
    """Name of the profile that was measured."""


class HostValue(_Frozen):
    """One measured host cost."""

    value_s: float = Field(ge=0)
    spread: float = 0.0
    """Interquartile range over median of the samples."""
    source: str = ""


class Overlap(_Frozen):
    """Factors by which computation and communication slow each other while both run; 1 = not at all."""

    compute_slowdown: float = Field(default=1.0, ge=1.0)
    comm_slowdown: float = Field(default=1.0, ge=1.0)
    source: str = ""
    """Where they were measured; "": nowhere, a GPU's collectives take by what they move (`share_taken`)."""


class Environment(_Frozen):
    """The machine and software a profile was taken with."""

    device: str = ""
    threads: int | None = None
    torch: str = ""
    backend: str = ""
    driver: str = ""
    os_kernel: str = ""
    load: float | None = None
    """Load average per core while measuring."""


class HardwareProfile(_Frozen):
    """One machine."""

    format_version: int = FORMAT_VERSION
    name: str
    aliases: tuple[str, ...] = ()
    created: str
    """ISO 8601 date or time, UTC."""
    source: str
    device: DeviceSpec
    operators: tuple[OperatorFit, ...] = ()
    borrowed: tuple[BorrowedFit, ...] = ()
    """Only in files: a loaded profile has them among its operators."""
    host: dict[str, HostValue] = {}
    network: NetworkModel | None = None
    overlap: Overlap = Overlap()
    contention_s_per_byte: float = Field(default=0.0, ge=0)
    """Seconds that each byte of an operator's least memory traffic takes longer while all local ranks run
    than while the others idle. CPU: they share the memory's bandwidth; an operator that computes long on few
    bytes loses next to nothing."""
    rank_log_sigma: float = Field(default=0.0, ge=0)
    """Spread of ln(time) among ranks that compute the same: where they exchange, the slowest is awaited."""
    yardstick_s: dict[str, float] = {}
    """Seconds of the yardstick step (a fixed piece of training work) while the profile was measured, with all
    ranks at work ("together") and with one ("alone"): how fast the machine was then."""
    learnt: Learnt | None = None
    """Corrections that whole measured runs taught; a layer of its own, so that it can be taken off again."""
    log_shifts: dict[str, float] = Field(default={}, exclude=True)
    """Operator kind or link term -> ln(time) shift that the layer comes to under one framework; never in
    files (`costmodel.predict.learnt.with_learnt` sets it)."""
    environment: Environment = Environment()
    provenance: dict[str, Any] = {}
