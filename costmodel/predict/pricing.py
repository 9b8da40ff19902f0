"""Seconds for every operator of a graph on a profile: device time, host time and spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import TYPE_CHECKING

import numpy as np

from costmodel.estimate import FloatArray
from costmodel.graph.model_graph import Operator, Phase
from costmodel.hardware.alignment import whole_rows
from costmodel.hardware.device import cache_bytes, element_bytes, has_units, product_dtype, weight_bytes
from costmodel.hardware.forms.evaluate import form_of
from costmodel.hardware.host_machine import dispatch_factor
from costmodel.hardware.kinds import OPERATOR_KINDS
from costmodel.hardware.pricing import contended_s, long_run_s, operator_times, streams
from costmodel.predict.image_norms import whole_image_norms

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.hardware.schema import HardwareProfile

__all__ = ["PricedOperators", "host_cost_s", "price_operators", "price_runs", "streaming_s"]


_FLAT_COLS = 4096.0
"""Width of a run of elements: a token's, as in the tables that element-wise kernels are fitted to."""
_EXPERTS = ("grouped_gemm", "moe")
_PADDED = ("gemm", "bmm")
_WEIGHTED = ("gemm", "grouped_gemm", "moe")
_PRODUCTS = ("gemm", "bmm", "grouped_gemm", "conv", "attention")


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedOperators:
    """Per operator, in the order given: device seconds, host seconds and spread of ln(device time).

    `contended_s` is the part of `device_s` that is lost to neighbours at work on the same memory. `fit`
    names what each operator was priced by (kind/variant/dtype, "" for none); operators of one fit err
    together by `common_log_sigma`, and beyond that, where they are of one size, by the rest.
    """

    device_s: FloatArray
    contended_s: FloatArray
    host_s: FloatArray
    log_sigma: FloatArray
    common_log_sigma: FloatArray
    fit: tuple[str, ...]

    def errors(self, operators: Sequence[Operator]) -> tuple[tuple[tuple[str, float], ...], ...]:
        """Of each operator: what it errs with (`costmodel.predict.uncertainty`) -> seconds of one standard
        deviation. `operators`: those that were priced."""
        own = np.sqrt(np.maximum(self.log_sigma**2 - self.common_log_sigma**2, 0.0)) * self.device_s
        common = self.common_log_sigma * self.device_s
        found = []
        for op, fit, in_common, alone in zip(operators, self.fit, common.tolist(), own.tolist(), strict=True):
            of_size = f"fit {fit} @{'x'.join(map(str, op.dims.values()))}"
            both = ((f"fit {fit}", in_common), (of_size, alone))
            found.append(tuple((name, seconds) for name, seconds in both if fit and seconds > 0.0))
        return tuple(found)

    def errors_along(self, size: str) -> dict[str, FloatArray]:
        """Where the operators are one kernel at n numbers of tokens: what it errs with -> seconds [n] of one
        standard deviation. `size`: its other sizes, in words."""
        fit = self.fit[0]
        own = np.sqrt(np.maximum(self.log_sigma**2 - self.common_log_sigma**2, 0.0))
        both = {f"fit {fit}": self.common_log_sigma, f"fit {fit} @{size}": own}
        return {name: sigma * self.device_s for name, sigma in both.items() if fit}


def host_cost_s(profile: HardwareProfile, name: str) -> float:
    """A measured host cost of the profile in seconds; 0 where it was not measured."""
    value = profile.host.get(name)
    return 0.0 if value is None else float(value.value_s)


def price_operators(
    operators: Sequence[Operator],
    profile: HardwareProfile,
    framework: FrameworkProfile,
    *,
    long_run: bool = False,
) -> PricedOperators:
    """Price operators in groups of one (kind, variant, dtype), vectorised over each group.

    `long_run`: they are part of work that keeps the device busy for long (a step of training), so that its
    power limit holds.

    On a device with its own queue (cuda) the host's dispatch runs beside the kernels and is returned as
    `host_s`. On a CPU the measured operator time already holds its dispatch; `host_s` is then what eager
    autograd, or without gradients the modules' own code, adds around it.
    """
    return price_runs([operators], profile, framework, long_run=long_run)[0]


def price_runs(
    runs: Sequence[Sequence[Operator]],
    profile: HardwareProfile,
    framework: FrameworkProfile,
    *,
    long_run: bool = False,
) -> tuple[PricedOperators, ...]:
    """`price_operators` of several runs of operators (each all of one segment), which takes about as long
    as the longest of them: most of the time goes to starting array operations."""
    runs = [_routed(run, profile, framework) for run in runs]
    if profile.device.kind != "cpu":
        runs = [whole_image_norms(run) for run in runs]
    operators = list(chain.from_iterable(runs))
    n = len(operators)
    device_s = np.zeros(n)
    contended = np.zeros(n)
    log_sigma, common = np.zeros(n), np.zeros(n)
    fit = [""] * n
    groups: dict[tuple[str, str, str], list[int]] = {}
    for position, op in enumerate(operators):
        if op.kind != "host":
            groups.setdefault((op.kind, op.variant, _priced_dtype(op, profile, framework)), []).append(
                position
            )
    for (kind, variant, dtype), positions in sorted(groups.items()):
        names = OPERATOR_KINDS[kind].dims
        dims = {
            name: np.array([operators[i].dims.get(name, 0) for i in positions], dtype=np.float64)
            for name in names
        }
        if kind == "elementwise" and profile.device.kind != "cpu":
            dims = _flat(dims)
        if kind in _PADDED and framework.fusion == "compiled" and profile.device.kind != "cpu":
            dims = whole_rows(dtype, variant, dims)
        library = (*(framework.expert_kernels if kind == "moe" else ()), *framework.kernels)
        estimate = operator_times(profile, kind, variant, dtype, dims, framework=library)
        share = framework.memory_bound_efficiency if streams(kind) else 1.0
        share *= framework.attention_efficiency if kind == "attention" else 1.0
        median_s = estimate.median_s
        if long_run and profile.device.long_run_flop_per_s:
            median_s = np.maximum(median_s, long_run_s(profile, kind, variant, dtype, dims))
        device_s[positions] = median_s / share
        if kind == "attention" and variant == "decode" and framework.decode_elements_per_s:
            device_s[positions] = _by_query_head_s(dims, dtype, profile, framework)
        if kind == "gemm" and dtype in framework.vector_products:
            alone = dims["m"] == 1
            device_s[positions] = np.where(
                alone, _reduced_s(dims, dtype, profile, framework), device_s[positions]
            )
        if framework.conv_layout_passes and kind == "conv":
            turned = [not operators[i].arguments.get("channels_last", 0) for i in positions]
            device_s[positions] += turned * _layout_s(dims, dtype, variant, profile, framework)
        if framework.memory_bound_elements_per_cycle and streams(kind):
            device_s[positions] += _handling_s(dims["bytes"], dtype, profile, framework)
        contended[positions] = contended_s(profile, kind, variant, dtype, dims, estimate.median_s)
        log_sigma[positions], common[positions] = estimate.log_sigma, estimate.common
        for i in positions:
            fit[i] = f"{kind}/{variant}/{dtype}"
    ends = list(accumulate(map(len, runs)))
    return tuple(
        PricedOperators(
            device_s=device_s[start:end],
            contended_s=contended[start:end],
            host_s=_host_times(run, profile, framework),
            log_sigma=log_sigma[start:end],
            common_log_sigma=common[start:end],
            fit=tuple(fit[start:end]),
        )
        for run, start, end in zip(runs, [0, *ends], ends, strict=False)
    )


def _by_query_head_s(
    dims: Mapping[str, FloatArray], dtype: str, profile: HardwareProfile, framework: FrameworkProfile
) -> FloatArray:
    """Seconds [n] of decode kernels in which each query head takes its keys and values by itself: those of
    one key, and the longer of reading them once from memory and of taking them through the multiprocessors
    once for each query head."""
    shortest = operator_times(profile, "attention", "decode", dtype, {**dims, "kv_len": np.ones(1)})
    kept = np.where(dims["window"] > 0, np.minimum(dims["kv_len"], dims["window"]), dims["kv_len"])
    elements = dims["batch"] * kept * dims["heads"] * (dims["qk_dim"] + dims["v_dim"])
    device = profile.device
    taken_s = elements / (framework.decode_elements_per_s * device.multiprocessors)
    read_s = elements * dims["kv_heads"] / dims["heads"] * cache_bytes(dtype) / device.memory_bytes_per_s
    return shortest.median_s + np.maximum(taken_s, read_s / framework.decode_memory_efficiency)


def _reduced_s(
    dims: Mapping[str, FloatArray], dtype: str, profile: HardwareProfile, framework: FrameworkProfile
) -> FloatArray:
    """Seconds [n] of products of one row written as a reduction over the weights, which come from memory."""
    size = dims["n"] * dims["k"] * weight_bytes(dtype)
    sizes = {"rows": dims["n"], "cols": dims["k"], "bytes": size}
    estimate = operator_times(profile, "reduction", "sum", framework.compute_dtype, sizes)
    return np.maximum(estimate.median_s, size / profile.device.memory_bytes_per_s)


def streaming_s(
    elements: int, size_bytes: float, profile: HardwareProfile, framework: FrameworkProfile
) -> float:
    """Seconds of reading and writing so many bytes of so many elements, at the speed of an addition."""
    sizes = {"rows": np.array([1.0]), "cols": np.array([float(elements)]), "bytes": np.array([size_bytes])}
    dims = sizes if profile.device.kind == "cpu" else _flat(sizes)
    estimate = operator_times(profile, "elementwise", "add", framework.compute_dtype, dims)
    return float(estimate.median_s[0]) / framework.memory_bound_efficiency


def _routed(
    operators: Sequence[Operator], profile: HardwareProfile, framework: FrameworkProfile
) -> Sequence[Operator]:
    """The operators with what streams routed tokens around experts in the framework's type for that, and the
    router's own product on tensor cores."""
    modules = {op.module for op in operators if op.kind in _EXPERTS}
    if framework.routed_rows == "as_traced" or not modules:
        return operators
    tensor_cores = "tf32" in profile.device.peak_flop_per_s
    found = []
    for op in operators:
        if op.dtype == "fp32" and op.module in modules and "bytes" in op.dims:
            dims = {**op.dims, "bytes": op.dims["bytes"] // 2}
            found.append(replace(op, dtype=framework.compute_dtype, dims=dims))
        elif op.dtype == "fp32" and op.kind == "gemm" and tensor_cores:
            found.append(replace(op, dtype="tf32"))
        else:
            found.append(op)
    return found


def _priced_dtype(op: Operator, profile: HardwareProfile, framework: FrameworkProfile) -> str:
    """The type an operator computes in: products of fp32 operands may be tf32, with weights fp8."""
    peaks = profile.device.peak_flop_per_s
    if op.kind in _PRODUCTS and product_dtype(profile.device, op.dtype) != op.dtype:
        return product_dtype(profile.device, op.dtype)
    narrow = framework.half_products
    if op.kind in _EXPERTS and framework.expert_products != "as the others":
        narrow = framework.expert_products
    if op.kind in _WEIGHTED and op.dtype in ("fp16", "bf16") and narrow != "same":
        return narrow if has_units(profile.device, narrow) else op.dtype
    if op.dtype != "fp32" or op.kind not in _PRODUCTS or "tf32" not in peaks:
        return op.dtype
    own = op.kind == "conv" and framework.fp32_convolutions != "as products"
    return framework.fp32_convolutions if own else framework.fp32_products


def _layout_s(
    dims: Mapping[str, FloatArray],
    dtype: str,
    variant: str,
    profile: HardwareProfile,
    framework: FrameworkProfile,
) -> FloatArray:
    """Seconds [n] in which convolutions on matrix units change their operands' layout."""
    peaks = profile.device.peak_flop_per_s
    if peaks.get(dtype, 0.0) <= peaks.get("fp32", 0.0):
        return np.zeros(len(dims["batch"]))
    moved = 2.0 * form_of("conv").least_bytes(dims, dtype, variant)
    alone = (dims["groups"] > 1) & (dims["c_in"] <= dims["groups"])  # depthwise kernels take them as they lie
    passes = np.where(alone, 0.0, framework.conv_layout_passes)
    return np.asarray(passes * moved / profile.device.memory_bytes_per_s)


def _handling_s(
    moved_bytes: FloatArray, dtype: str, profile: HardwareProfile, framework: FrameworkProfile
) -> FloatArray:
    """Seconds [n] that the multiprocessors take over the values of `moved_bytes`, beside moving them."""
    values = moved_bytes / element_bytes(dtype)
    cycles_per_s = profile.device.multiprocessors * profile.device.boost_hz
    return np.asarray(values / (cycles_per_s * framework.memory_bound_elements_per_cycle))


def _flat(dims: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Element-wise work as a GPU's kernels see it: one run of elements, whatever their shape in the model.

    Measured tables have a token's width as `cols`; so have these.
    """
    elements = dims["rows"] * dims["cols"]
    cols = np.minimum(np.maximum(elements, 1.0), _FLAT_COLS)
    return {**dims, "rows": np.maximum(np.round(elements / cols), 1.0), "cols": cols}


def _host_times(
    operators: Sequence[Operator], profile: HardwareProfile, framework: FrameworkProfile
) -> FloatArray:
    asynchronous = profile.device.kind != "cpu"
    dispatch = 0.0
    if asynchronous:  # a shipped profile of a GPU knows no host: then the framework's runs tell
        measured = profile.host.get("dispatch_s")
        if measured is None:
            dispatch = framework.host_operator_s * dispatch_factor(profile)
        else:
            dispatch = measured.value_s * framework.host_factor
    view = host_cost_s(profile, "host_view_s")
    autograd = host_cost_s(profile, "autograd_s")
    times = np.array([view if op.kind == "host" else dispatch for op in operators])
    differentiated = {op.forward_index for op in operators if op.phase is Phase.BACKWARD}
    times += np.array([autograd if op.index in differentiated else 0.0 for op in operators])
    if not differentiated:  # without gradients: what modules do around their operators
        module = host_cost_s(profile, "module_s")
        called = [op.phase is Phase.FORWARD and op.kind != "host" for op in operators]
        times += module * np.array(called, dtype=np.float64)
    # kernels without inputs or results are parts of another one's call
    times *= np.array([1.0 if op.inputs or op.outputs else 0.0 for op in operators])
    return times if asynchronous else times * framework.host_factor
