"""Real ONNX Runtime runs: models exported, run on the CPU and held against their forecast."""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from calibrate.onnx_kernels import executor_profile, measure_kernels, new_session
from costmodel.errors import ForeshardError, MeasurementError
from costmodel.plan import Plan
from planner.validation.local import chosen_models
from planner.validation.scoring import Report, ScoredRow

if TYPE_CHECKING:
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.models import BuiltModel, ModelSource

__all__ = ["export_model", "validate_onnx"]

_FRAMEWORK = "onnxruntime"
_TOLERANCE = 1e-3
"""Largest difference of outputs to torch's, relative to their size, of a run that is scored."""
_LEAST_TIMED_S = 0.5


def export_model(built: BuiltModel) -> bytes:
    """The module as an ONNX model, by torch's own exporter. Raises MeasurementError with its reason."""
    import torch

    module = built.module.eval()
    quiet = logging.getLogger("torch.onnx")
    before, quiet_level = quiet.level, logging.ERROR
    quiet.setLevel(quiet_level)
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module, tuple(built.args), kwargs=dict(built.kwargs), dynamo=True, verbose=False
            )
        assert program is not None
        return bytes(program.model_proto.SerializeToString())
    except Exception as error:  # the exporter raises many kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise MeasurementError(f"torch.onnx cannot export the model: {reason}") from error
    finally:
        quiet.setLevel(before)


def validate_onnx(
    *,
    models: Sequence[str] | None,
    profile: HardwareProfile,
    global_batch_size: int | None = None,
    repeats: int = 3,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Forward passes of each model at its batch: measured under ONNX Runtime, predicted from its kernels.

    A run whose outputs differ from torch's is not scored.
    """
    from costmodel.models import resolve

    if progress is not None:
        progress("measuring ONNX Runtime's kernels")
    machine = executor_profile(profile, measure_kernels(profile.device.name, threads=threads))
    rows, runs = [], []
    for entry in chosen_models(models, global_batch_size):
        source = resolve(
            entry.model.model,
            micro_batch_size=entry.global_batch_size,
            seq_len=entry.model.seq_len,
            overrides=dict(entry.model.overrides),
            task="inference",
        )
        if progress is not None:
            progress(f"exporting and running {entry.model.label}")
        predicted: Any = None
        skipped = None
        measured: list[float] = []
        try:
            predicted = _forecast(source, machine, entry.global_batch_size)
            measured, error = _run(source, repeats, threads)
            if error > _TOLERANCE:
                skipped = f"outputs differ from torch's by {error:.2g} > {_TOLERANCE:g}"
        except ForeshardError as problem:
            skipped = str(problem)
        known = predicted is not None and skipped is None
        rows.append(
            ScoredRow(
                id=f"{entry.model.label}/onnxruntime",
                source="run",
                group=f"{entry.model.label}/gbs{entry.global_batch_size}",
                metric="forward_time_s",
                measured=statistics.median(measured) if measured else None,
                predicted=predicted.time_s if known else None,
                low=predicted.interval_s[0] if known else None,
                high=predicted.interval_s[1] if known else None,
                skipped=skipped,
                labels={"model": entry.model.label, "strategy": _FRAMEWORK},
            )
        )
        runs.append({"id": rows[-1].id, "times_s": measured, "breakdown_s": known and predicted.breakdown_s})
    return Report.of(rows, by=("model", "strategy"), details={"runs": runs})


def _forecast(source: ModelSource, machine: HardwareProfile, batch_size: int) -> Any:
    from costmodel.framework import load_framework
    from costmodel.predict.inference import InferenceForecaster

    forecaster = InferenceForecaster(source=source, profile=machine, framework=load_framework(_FRAMEWORK))
    return forecaster.forward(Plan(), batch_size=batch_size)


def _run(source: ModelSource, repeats: int, threads: int) -> tuple[list[float], float]:
    """(seconds of each timed forward, largest difference of the first output to torch's)."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    built = replace(source).build()
    session = new_session(export_model(built), threads)
    tensors = [x for x in (*built.args, *built.kwargs.values()) if isinstance(x, torch.Tensor)]
    feeds = {node.name: x.numpy() for node, x in zip(session.get_inputs(), tensors, strict=True)}
    found = session.run(None, feeds)[0]
    with torch.no_grad():
        output = built.module.eval()(*built.args, **built.kwargs)
    first = output if isinstance(output, torch.Tensor) else next(iter(output.values()))
    expected = first.detach().numpy()
    error = float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-12))
    times: list[float] = []
    end = time.perf_counter() + repeats * _LEAST_TIMED_S
    while len(times) < repeats or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return times, error
