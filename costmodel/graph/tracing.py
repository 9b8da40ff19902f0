"""`trace`: any module to a ModelGraph, on fake tensors, repeated blocks once."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from costmodel.errors import ForeshardError, TraceError
from costmodel.graph.blocks import Unit, find_units, reduced
from costmodel.graph.capture import CPU_ATTENTION, Capture, capture_step, packet_name, storage_key
from costmodel.graph.fake_calls import FakeCalls
from costmodel.graph.libraries import (
    as_on_real_tensors,
    fused_where_written_out,
    written_out_by_library,
)
from costmodel.graph.loss import default_loss
from costmodel.graph.model_graph import ModelGraph, Segment
from costmodel.graph.nodes import Reader
from costmodel.graph.quiet import quiet_fake_tensors
from costmodel.graph.recurrent import FusedRecurrence
from costmodel.graph.segments import are_chains, boundaries_are_clean, cut_segments, ends_alike
from costmodel.graph.uncompiled import leave_compiler_unloaded
from costmodel.models.images import UNSEEN, text_alone
from costmodel.models.source import samples_in

if TYPE_CHECKING:
    from costmodel.models import ModelSource

__all__ = ["ATTENTION", "fake_mode", "trace", "trace_module"]

_OWN_FOLDER = str(Path(__file__).parent)
_REMEDY = {f"{CPU_ATTENTION}{back}.default": " (--attention flash counts them)" for back in ("", "_backward")}
_ADVICE = (
    (
        "dynamic|data-dependent",
        "its result's size depends on data: give the model a variant with static shapes",
    ),
    (
        "DataDependent",
        "it reads a value out of a tensor (`.item()`, `if tensor:`), and a trace has none: give the model a "
        "variant that does not",
    ),
    (
        r"shape_env|NestedTensor|Sparse(?!_coo\): number of dim)",
        "a trace follows dense tensors only: give the model a variant with padding, or indices and values",
    ),
    (
        "saved tensor hooks",
        "transforms of torch.func inside a model cannot be traced: write them with torch.autograd.grad",
    ),
    (
        "does not require grad",
        "nothing that it computes is trained: let parameters require gradients, or ask for inference "
        "(`trace --inference`, `infer`)",
    ),
    (
        "",
        "run the module once on real tensors with these inputs: it must pass there first; other inputs can "
        "be given with it, by a module:callable that returns (module, args, kwargs)",
    ),
)
"""What an error says -> what to do, the first that is found."""
_DEEPEST = 2
"""How far nested lists are tried as units."""
ATTENTION = ("as_run", "flash", "unfused", "eager")
"""as_run: what torch's dispatcher takes on this CPU; flash: one fused call; unfused: two products and a
softmax; eager: as the model's library writes it out, with scale and mask in kernels of their own, else
unfused. Where it is not as_run, recurrent layers are one call each, too, as on a GPU."""


class _FlashAttention(TorchFunctionMode):
    """Makes every scaled_dot_product_attention one fused call: dropout happens inside the kernel."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        values = dict(kwargs or {})
        if func is nn.functional.scaled_dot_product_attention:
            values["dropout_p"] = 0.0
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            if len(args) > 4:
                values.pop("dropout_p")
            fused = _of_two_widths(*args, **values)
            if fused is not None:
                return fused
        return func(*args, **values)


def _of_two_widths(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | None:
    """The fused call where values are of another width than keys, which a CPU would write out; else None."""
    if query.ndim != 4 or query.shape[-1] == value.shape[-1]:
        return None
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    out: torch.Tensor = attend(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
    return out


@contextmanager
def _as_on(how: str) -> Iterator[None]:
    """Inside, attention is `how`, and recurrent layers are one call each where that is not as on this CPU."""
    with _attention(how), nullcontext() if how == "as_run" else FusedRecurrence():
        yield


@contextmanager
def _attention(how: str) -> Iterator[None]:
    if how == "flash":
        with _FlashAttention():
            yield
    elif how in ("unfused", "eager"):
        # torch would do products of half-precision inputs in fp32; frameworks that write attention out do not
        before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
        try:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                yield
        finally:
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
    else:
        yield


def trace(
    source: ModelSource,
    *,
    training: bool = True,
    attention: str = "as_run",
    reduce: bool = True,
    dtype: str = "fp32",
    autocast: str = "",
    mode: FakeTensorMode | None = None,
) -> ModelGraph:
    """Trace a resolved model without its weights; `dtype`: of its parameters and floating-point inputs.

    `autocast`: half-precision type of a torch.autocast around forward and loss (`cpu:bf16`: a CPU's), "" for
    none.
    `reduce=False` traces every instance of repeated blocks (the check of the reduction). `mode`: of an
    earlier trace of the same model in the same dtype, whose module is used again where its builder keeps it.
    Raises TraceError with the operator or line that stops it, ModelArgumentError from building.
    """
    start = time.perf_counter()
    with quiet_fake_tensors(), mode or fake_mode(), _default_dtype(dtype):
        built = source.build(device="cpu")

        def traced(kwargs: Mapping[str, Any]) -> ModelGraph:
            return trace_module(
                built.module,
                built.args,
                kwargs,
                name=source.name,
                micro_batch_size=source.micro_batch_size or samples_in(built.args, kwargs) or 1,
                seq_len=source.seq_len,
                training=training,
                attention=attention,
                reduce=reduce,
                autocast=autocast,
                started_s=start,
            )

        notes, text = built.notes, text_alone(built.kwargs)
        try:
            graph = traced(built.kwargs)
        except TraceError as error:
            if text is None:
                raise _of_other_size(error, built.example_samples, source.micro_batch_size) from error
            try:
                graph = traced(text)
            except TraceError:
                raise error from None
            notes = (*notes, f"{UNSEEN}: {str(error).partition(';')[0]}")
        return replace(graph, notes=(*graph.notes, *notes), example_samples=built.example_samples)


def _of_other_size(error: TraceError, given: int, asked: int) -> TraceError:
    """The error, with the example inputs' size where another was asked for and no other cause is known."""
    if 0 in (given, asked) or given == asked or _ADVICE[-1][1] not in str(error):
        return error
    return TraceError(
        f"{error} (its {given} example samples were made {asked} along dimension 0: parts of the model may "
        f"be made for {given}, or inputs have another order of dimensions; ask for mbs{given})"
    )


@contextmanager
def _default_dtype(name: str) -> Iterator[None]:
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name not in types:
        raise TraceError(f"dtype={name!r}: a model is traced in one of {', '.join(types)}")
    before = torch.get_default_dtype()
    torch.set_default_dtype(types[name])
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fake_mode() -> FakeTensorMode:
    """A mode that takes real tensors for fake ones."""
    leave_compiler_unloaded()
    return FakeTensorMode(allow_non_fake_inputs=True)


def trace_module(
    module: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str = "model",
    micro_batch_size: int = 1,
    seq_len: int = 0,
    training: bool = True,
    attention: str = "as_run",
    reduce: bool = True,
    autocast: str = "",
    loss_of: Callable[[Any], torch.Tensor] = default_loss,
    started_s: float | None = None,
) -> ModelGraph:
    """Trace a module; real tensors are replaced by fake ones of their size. The module is left as it was."""
    if attention not in ATTENTION:
        raise TraceError(f"attention={attention!r}: must be one of {', '.join(ATTENTION)}")
    start = time.perf_counter() if started_s is None else started_s
    named = dict(kwargs or {})
    sparse = [path for path, child in module.named_modules() if getattr(child, "sparse", False) is True]
    if training and sparse:
        raise TraceError(
            f"{len(sparse)} modules make sparse gradients ({', '.join(sparse[:3])}): a trace has "
            "sizes of dense ones only; build them with sparse=False, or ask for inference (`--inference`)"
        )
    _refuse_other_layouts(module, args, named)
    fake = _mode_of(module, args, named)
    real = fake is None
    mode = fake_mode() if fake is None else fake
    paths = {id(m): path for path, m in module.named_modules()}
    was_training = module.training
    module.train(training)
    try:
        with (
            quiet_fake_tensors(),
            mode if real else nullcontext(),
            as_on_real_tensors(),
            fused_where_written_out(module) if training and attention == "flash" else nullcontext(),
            written_out_by_library(module) if attention == "eager" else nullcontext(),
        ):
            if real:
                args, named = pytree.tree_map(
                    lambda v: _as_fake(v, mode) if isinstance(v, torch.Tensor) else v,
                    (tuple(args), named),
                )
            step = _Traced(module, args, named, loss_of, training, paths, attention, autocast, mode)
            units, reader = _finest(step, reduce)
    finally:
        module.train(was_training)
    read = {index for op in reader.operators for index in op.inputs}
    unused = [i for i, t in reader.tensors.items() if t.role == "parameter" and i not in read]
    segments = cut_segments(reader.operators, reader.tensors, units, unused)
    return ModelGraph(
        name=name,
        micro_batch_size=micro_batch_size,
        seq_len=seq_len,
        segments=segments,
        traced_by="torch.fx graph of the eager step on fake tensors",
        trace_time_s=time.perf_counter() - start,
        tp_plan=_named_styles(getattr(module, "_tp_plan", None) or {}),
        notes=(*_notes(segments), *_taken_for_granted(reader.capture)),
    )


def _refuse_other_layouts(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """TraceError for sparse and nested tensors, which have no strides or storage to follow."""
    inputs = ((f"input {i}", t) for i, t in enumerate(pytree.tree_leaves((tuple(args), dict(kwargs)))))
    for name, value in (*module.named_parameters(), *module.named_buffers(), *inputs):
        if isinstance(value, torch.Tensor) and (value.layout is not torch.strided or value.is_nested):
            raise TraceError(
                f"{name} is no dense tensor ({value.layout}): a trace follows dense ones only; give the "
                "model a variant with indices and values (index_add) or with padding"
            )


def _named_styles(tp_plan: Mapping[str, Any]) -> dict[str, str]:
    """Styles that are a library's own objects are left to the search."""
    return {pattern: style for pattern, style in tp_plan.items() if isinstance(style, str)}


def _notes(segments: Sequence[Segment]) -> tuple[str, ...]:
    """What the totals leave out."""
    calls: Counter[str] = Counter()
    for segment in segments:
        for op in segment.operators:
            if op.flop or op.kind not in ("attention", "gemm") or not op.outputs:
                continue
            calls[op.target] += segment.count
    return tuple(
        f"{n} calls of {target} have no FLOP formula in torch.utils.flop_counter: their FLOP are in the "
        "predicted time but not in the totals" + _REMEDY.get(target, "")
        for target, n in calls.items()
    )


def _taken_for_granted(capture: Capture) -> Iterator[str]:
    """What sizes in the graph stand on that a trace cannot know."""
    made = Counter(packet_name(node.meta.get("item_of", node).target) for node in capture.known.choices)
    if made:
        names = ", ".join(sorted(made))
        yield (
            f"sizes follow from choices that data make ({names}; experts' tokens): "
            "taken to fall on all in turn"
        )


@dataclass(frozen=True, slots=True)
class _Traced:
    """A step that can be recorded with its repeated blocks reduced in different ways."""

    module: nn.Module
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    loss_of: Callable[[Any], torch.Tensor]
    training: bool
    paths: Mapping[int, str]
    attention: str
    autocast: str
    mode: FakeTensorMode

    def record(self, kept: dict[str, list[int]]) -> Reader:
        names = _original_names(self.module, self.paths)
        with reduced(self.module, kept), _Swapped(self.module, self.mode) as made:
            capture = _captured(self, {id(fake): names[key] for key, fake in made.items()})
            reader = Reader(capture, [p.grad for p in self.module.parameters() if p.grad is not None])
            for p in self.module.parameters():
                p.grad = None
        return reader


def _finest(step: _Traced, reduce: bool) -> tuple[list[Unit], Reader]:
    """The smallest units between which one tensor passes; the outermost lists' elements where none do."""
    signatures: dict[Any, Any] = {}
    found = [
        find_units(step.module, reduce=reduce, depth=depth, known=signatures) for depth in range(_DEEPEST + 1)
    ]
    for depth in range(_DEEPEST, -1, -1):
        units, kept = found[depth]
        if depth and [u.elements for u in units] == [u.elements for u in found[depth - 1][0]]:
            continue
        try:
            reader = step.record(kept)
        except TraceError:
            if not kept:
                raise
            if depth:
                continue
            # the model counts on the full length of its lists
            units, kept = find_units(step.module, reduce=False)
            reader = step.record(kept)
        if kept and not are_chains(reader.operators, reader.tensors, units):
            # what follows a list reads more than its last element: every element counts
            units, kept = find_units(step.module, reduce=False, depth=depth)
            reader = step.record(kept)
        if depth and not boundaries_are_clean(reader.operators, reader.tensors, units):
            continue
        if kept and not ends_alike(reader.operators, reader.tensors, units):
            units, kept = find_units(step.module, reduce=True, depth=depth, known=signatures, last_too=True)
            reader = step.record(kept)
        return units, reader
    raise AssertionError("depth 0 always returns")


def _original_names(module: nn.Module, paths: Mapping[int, str]) -> dict[int, str]:
    """id(tensor) -> name in the whole model, first name first (tied tensors keep it)."""
    names: dict[int, str] = {}
    for child in module.modules():
        path = paths.get(id(child), "")
        for store in (child._parameters, child._buffers):
            for key, tensor in store.items():
                if tensor is not None:
                    names.setdefault(id(tensor), f"{path}.{key}" if path else key)
    return names


def _mode_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> FakeTensorMode | None:
    for t in (*module.parameters(), *module.buffers(), *pytree.tree_leaves((tuple(args), dict(kwargs)))):
        mode = getattr(t, "fake_mode", None)
        if mode is not None:
            return mode  # type: ignore[no-any-return]
    return None


def _as_fake(tensor: torch.Tensor, mode: FakeTensorMode) -> Any:
    """The fake tensor of a real one, or of one without values as if it were on the CPU."""
    if not tensor.is_meta:
        return mode.from_tensor(tensor)
    with unset_fake_temporarily():
        return FakeTensor(mode, tensor.detach(), torch.device("cpu"))


class _Swapped:
    """Replaces real parameters and buffers, and those without values, by fake ones on the CPU for the time of
    the block; ties are kept.

    So are fake ones that were deep-copied: their views have another storage than they have themselves, and
    would count as copies.
    """

    def __init__(self, module: nn.Module, mode: FakeTensorMode) -> None:
        self._module = module
        self._mode = mode
        self._calls = FakeCalls(mode)
        self._before: list[tuple[dict[str, Any], str, Any]] = []

    def __enter__(self) -> dict[int, Any]:
        """id(tensor) of the module -> what stands for it inside."""
        made: dict[int, Any] = {}
        for child in self._module.modules():
            for store in (child._parameters, child._buffers):
                for key, tensor in list(store.items()):
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        made[id(tensor)] = self._replacement(tensor)
                    if made[id(tensor)] is not tensor:
                        self._before.append((store, key, tensor))
                        store[key] = made[id(tensor)]
        return made

    def _replacement(self, tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, FakeTensor):
            fake = _as_fake(tensor if tensor.is_meta else tensor.detach(), self._mode)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                fake = self._calls(torch.ops.aten.detach.default, (tensor,), {})
            if storage_key(fake) == storage_key(tensor):
                return tensor
        if isinstance(tensor, nn.Parameter):  # as nn.Parameter marks a tensor of its own type, a new one here
            fake.requires_grad_(tensor.requires_grad)
            fake._is_param = True
        return fake  # type: ignore[no-any-return]

    def __exit__(self, *exc: object) -> None:
        for store, key, tensor in self._before:
            store[key] = tensor


def _captured(step: _Traced, names: Mapping[int, str]) -> Capture:
    try:
        with _as_on(step.attention):
            return capture_step(
                step.module,
                step.args,
                step.kwargs,
                loss_of=step.loss_of,
                training=step.training,
                paths=step.paths,
                names=names,
                mode=step.mode,
                fused_attention=step.attention == "flash",
                autocast_to=step.autocast,
            )
    except ForeshardError:
        raise
    except Exception as error:
        raise TraceError(_explain(error)) from error


def _explain(error: Exception) -> str:
    """The innermost line of the user's own or a model library's code, and what to do."""
    frame = error.__traceback__
    where = ""
    while frame is not None:
        path = frame.tb_frame.f_code.co_filename
        if "/torch/" not in path and not path.startswith(_OWN_FOLDER):
            where = f"{'/'.join(path.split('/')[-3:])}:{frame.tb_lineno}"
        frame = frame.tb_next
    text = str(error).strip().split("\n")[0] or type(error).__name__
    kind = type(error).__name__
    advice = next(a for words, a in _ADVICE if re.search(words, f"{kind}: {text}", re.IGNORECASE))
    return f"the model cannot be traced: {kind}: {text} (at {where or 'unknown line'}); {advice}"
