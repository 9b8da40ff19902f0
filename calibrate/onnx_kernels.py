"""ONNX Runtime's own kernels on this machine: each a model of a few equal nodes, fitted like torch's.

An executor that is not torch has other kernels, so a forecast of it needs a profile of them: the machine's
profile with the fits of what was measured here in place of torch's. Takes about ten seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from calibrate.benchmarks.points import log_points
from calibrate.samples import SampleTable
from costmodel.errors import MeasurementError
from costmodel.hardware.forms.base import load_forms
from costmodel.hardware.schema import HardwareProfile

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["executor_profile", "measure_kernels", "new_session"]

_NODES = 4
"""Nodes of a timed model: each with weights of its own, so that no call's overhead counts for one kernel."""
_OPSET = 20
_IR_VERSION = 10
_TIMED_S = 0.03
_MOST_FLOP = 1.5e9
_MOST_BYTES = 64e6
_FEWEST_ROWS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kernel:
    """One operator at one size. `node`: (index, input name) -> nodes, initializers by name."""

    kind: str
    variant: str
    dims: Mapping[str, int]
    input_shape: tuple[int, ...]
    node: Callable[[int, str], tuple[list[Any], dict[str, np.ndarray[Any, Any]]]]
    integers: int = 0
    """Above 0: the input holds integers below it."""


def new_session(model: bytes, threads: int) -> Any:
    """A CPU session with all graph optimisations. Raises MeasurementError without onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MeasurementError(
            "onnxruntime is not installed; install foreshard with its extra: pip install foreshard[onnx]"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).standard_normal(shape, dtype=np.float32)


def _simple(op: str, kind: str, variant: str, rows: int, cols: int, moved: int, **attributes: Any) -> _Kernel:
    """A node of one input and one output of [rows, cols]."""
    from onnx import helper

    def node(i: int, x: str) -> tuple[list[Any], dict[str, np.ndarray[Any, Any]]]:
        return [helper.make_node(op, [x], [f"y{i}"], **attributes)], {}

    dims = {"rows": rows, "cols": cols, "bytes": 4 * moved * rows * cols}
    return _Kernel(kind=kind, variant=variant, dims=dims, input_shape=(rows, cols), node=node)


def _kernels() -> Iterator[_Kernel]:
    yield from _products()
    yield from _convolutions()
    yield from _streams()


def _products() -> Iterator[_Kernel]:
    from onnx import helper

    for size in log_points(60, {"m": (16, 4096), "n": (32, 4096), "k": (32, 4096)}):
        m, n, k = size["m"], size["n"], size["k"]
        if 2.0 * m * n * k <= _MOST_FLOP and 4.0 * n * k <= _MOST_BYTES / _NODES:

            def linear(i: int, x: str, n: int = n, k: int = k) -> tuple[list[Any], dict[str, Any]]:
                return [helper.make_node("MatMul", [x, f"w{i}"], [f"y{i}"])], {f"w{i}": _numbers(k, n)}

            yield _Kernel(
                kind="gemm", variant="nt", dims={"m": m, "n": n, "k": k}, input_shape=(m, k), node=linear
            )
    for size in log_points(24, {"batch": (4, 64), "m": (32, 512), "n": (32, 512), "k": (16, 256)}):
        batch, m, n, k = size["batch"], size["m"], size["n"], size["k"]
        if 2.0 * batch * m * n * k <= _MOST_FLOP:

            def product(
                i: int, x: str, batch: int = batch, n: int = n, k: int = k
            ) -> tuple[list[Any], dict[str, Any]]:
                return [helper.make_node("MatMul", [x, f"w{i}"], [f"y{i}"])], {f"w{i}": _numbers(batch, k, n)}

            dims = {"batch": batch, "m": m, "n": n, "k": k}
            yield _Kernel(kind="bmm", variant="nn", dims=dims, input_shape=(batch, m, k), node=product)


def _convolutions() -> Iterator[_Kernel]:
    from onnx import helper

    for size in log_points(40, {"batch": (1, 16), "c_in": (3, 512), "c_out": (16, 512), "side": (4, 64)}):
        for kernel, stride in ((3, 1), (1, 1), (3, 2)):
            batch, c_in, c_out, side = size["batch"], size["c_in"], size["c_out"], size["side"]
            flop = 2.0 * batch * c_in * c_out * kernel**2 * (side / stride) ** 2
            if not 1e6 < flop <= _MOST_FLOP:
                continue

            def convolution(
                i: int,
                x: str,
                c_in: int = c_in,
                c_out: int = c_out,
                kernel: int = kernel,
                stride: int = stride,
            ) -> tuple[list[Any], dict[str, Any]]:
                pads, strides = [kernel // 2] * 4, [stride, stride]
                node = helper.make_node("Conv", [x, f"w{i}"], [f"y{i}"], pads=pads, strides=strides)
                return [node], {f"w{i}": _numbers(c_out, c_in, kernel, kernel)}

            yield _Kernel(
                kind="conv",
                variant="fwd",
                dims={
                    "batch": batch,
                    "c_in": c_in,
                    "c_out": c_out,
                    "h": side,
                    "w": side,
                    "kh": kernel,
                    "kw": kernel,
                    "stride": stride,
                    "padding": kernel // 2,
                    "groups": 1,
                    "transposed": 0,
                },
                input_shape=(batch, c_in, side, side),
                node=convolution,
            )


def _streams() -> Iterator[_Kernel]:
    from onnx import helper

    for size in log_points(10, {"rows": (8, 8192), "cols": (16, 2048)}):
        rows, cols = size["rows"], size["cols"]
        if 8.0 * rows * cols > _MOST_BYTES:
            continue

        def added(i: int, x: str, shape: tuple[int, ...] = (rows, cols)) -> tuple[list[Any], dict[str, Any]]:
            return [helper.make_node("Add", [x, f"w{i}"], [f"y{i}"])], {f"w{i}": _numbers(*shape)}

        def normed(i: int, x: str, cols: int = cols) -> tuple[list[Any], dict[str, Any]]:
            node = helper.make_node("LayerNormalization", [x, f"w{i}", f"w{i}"], [f"y{i}"], axis=-1)
            return [node], {f"w{i}": _numbers(cols)}

        def gathered(i: int, x: str, cols: int = cols) -> tuple[list[Any], dict[str, Any]]:
            return [helper.make_node("Gather", [f"w{i}", x], [f"y{i}"])], {f"w{i}": _numbers(2048, cols)}

        moved = {"rows": rows, "cols": cols, "bytes": 12 * rows * cols}
        yield _Kernel(kind="elementwise", variant="add", dims=moved, input_shape=(rows, cols), node=added)
        yield _simple("Relu", "elementwise", "relu", rows, cols, 2)
        yield _simple("Gelu", "elementwise", "gelu", rows, cols, 2)
        yield _simple("Tanh", "elementwise", "tanh", rows, cols, 2)
        yield _simple("Transpose", "elementwise", "copy", rows, cols, 2, perm=[1, 0])
        yield _simple("Softmax", "softmax", "fwd", rows, cols, 2, axis=-1)
        yield _simple("ReduceMean", "reduction", "sum", rows, cols, 1)
        normal = {"rows": rows, "cols": cols, "bytes": 8 * rows * cols}
        yield _Kernel(kind="norm", variant="layernorm", dims=normal, input_shape=(rows, cols), node=normed)
        yield _Kernel(
            kind="embedding", variant="fwd", dims=normal, input_shape=(rows,), node=gathered, integers=2048
        )


def _model(kernel: _Kernel) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for i in range(_NODES):
        # inputs of their own: equal nodes would be merged
        made, own = kernel.node(i, f"x{i}")
        nodes += made
        weights |= own
    kind = TensorProto.INT64 if kernel.integers else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        kernel.kind,
        [helper.make_tensor_value_info(f"x{i}", kind, kernel.input_shape) for i in range(_NODES)],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(_NODES)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    model.ir_version = _IR_VERSION
    return bytes(model.SerializeToString())


def _time(kernel: _Kernel, threads: int) -> float:
    """Seconds of one node."""
    session = new_session(_model(kernel), threads)
    if kernel.integers:
        inputs = np.random.default_rng(7).integers(0, kernel.integers, kernel.input_shape)
        feeds = {f"x{i}": inputs for i in range(_NODES)}
    else:
        feeds = {f"x{i}": _numbers(*kernel.input_shape) for i in range(_NODES)}
    session.run(None, feeds)
    times: list[float] = []
    end = time.perf_counter() + _TIMED_S
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return statistics.median(times) / _NODES


def measure_kernels(
    device: str, *, threads: int = 1, kinds: Collection[str] | None = None
) -> dict[str, SampleTable]:
    """Operator kind -> its measured kernels (of these kinds only); MeasurementError without onnxruntime."""
    rows: dict[str, list[tuple[_Kernel, float]]] = {}
    for kernel in _kernels():
        if kinds is not None and kernel.kind not in kinds:
            continue
        rows.setdefault(kernel.kind, []).append((kernel, _time(kernel, threads)))
    return {kind: _table(kind, measured, device) for kind, measured in rows.items()}


def _table(kind: str, measured: Sequence[tuple[_Kernel, float]], device: str) -> SampleTable:
    return SampleTable.of(
        kind,
        {name: [float(kernel.dims[name]) for kernel, _ in measured] for name in measured[0][0].dims},
        time_s=[seconds for _, seconds in measured],
        variant=[kernel.variant for kernel, _ in measured],
        dtype="fp32",
        timing="eager_loop",
        device=device,
        source="own measurement",
        framework="onnxruntime",
    )


def executor_profile(profile: HardwareProfile, tables: Mapping[str, SampleTable]) -> HardwareProfile:
    """The machine's profile with ONNX Runtime's kernels in place of torch's, kind by kind.

    Its peak is the higher of both: another library may come closer to what the cores can do.
    """
    from calibrate.fitting.operators import fit_operator

    forms = load_forms()
    peak = profile.device.peak_flop_per_s.get("fp32", 0.0)
    for kind, table in tables.items():
        for group, rows in table.groups():
            peak = max(peak, float(np.max(forms[kind].flop(rows.dims, group.variant) / rows.time_s)))
    device = profile.device.model_copy(
        update={"peak_flop_per_s": {**profile.device.peak_flop_per_s, "fp32": peak}}
    )
    fits = [
        fit_operator(rows, device)
        for table in tables.values()
        for _, rows in table.groups()
        if len(rows) >= _FEWEST_ROWS
    ]
    measured = {fit.kind for fit in fits}
    others = [fit for fit in profile.operators if fit.kind not in measured]
    return profile.model_copy(
        update={
            "name": f"{profile.name} under onnxruntime",
            "device": device,
            "operators": (*fits, *others),
            "contention_s_per_byte": 0.0,
        }
    )
