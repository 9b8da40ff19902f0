"""Real modules with random weights and the batch they are run on.

The loss is what training minimises: the `loss` of a transformers output where the inputs hold labels,
the output itself where it is one number, else the mean of the first floating-point tensor of the output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.errors import ModelArgumentError, PlanError
from planner.validation.run_spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = [
    "LoadedModel",
    "has_dropout",
    "load_model",
    "loss_of",
    "named_inputs",
    "split_batch",
    "unused_parameters",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A module in training mode and the inputs of one global batch, by name of the forward's parameter."""

    module: nn.Module
    inputs: Mapping[str, Any]
    batch: int
    """Samples in `inputs` (size of dimension 0 of every batched tensor)."""


def load_model(spec: ModelSpec, *, batch: int, device: str = "cpu", seed: int = 0) -> LoadedModel:
    """Build the model and a batch of `batch` samples, the same ones on every rank for one seed.

    Example inputs of a `module:callable` are cut or repeated to fill `batch`.
    Raises ModelArgumentError where the argument names no model, PlanError where the batch does not fit.
    """
    import torch

    from costmodel.models import resolve
    from costmodel.models.source import samples_in

    torch.manual_seed(seed)
    source = resolve(spec.model, micro_batch_size=batch, seq_len=spec.seq_len, overrides=dict(spec.overrides))
    built = source.build(device=device)
    module = built.module.train()
    inputs = named_inputs(module, built.args, built.kwargs)
    held = samples_in((), inputs)
    if not held:
        raise ModelArgumentError(f"model {spec.label!r}: its example inputs hold no batched tensor")
    if held != batch:
        raise PlanError(f"model {spec.label!r}: its inputs hold {held} samples where {batch} were asked for")
    return LoadedModel(module=module, inputs=inputs, batch=batch)


def named_inputs(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments by parameter name of the module's forward."""
    import inspect

    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    inputs: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            inputs.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise ModelArgumentError(
                f"forward of {type(module).__name__} takes *{name}; name its tensor parameters to run it"
            )
        else:
            inputs[name] = value
    return inputs


def split_batch(inputs: Mapping[str, Any], *, batch: int, parts: int, index: int) -> dict[str, Any]:
    """Part `index` of `parts` equal parts of every batched tensor; the rest unchanged."""
    import torch

    if batch % parts:
        raise PlanError(f"a batch of {batch} cannot be cut into {parts} equal parts")
    size = batch // parts
    return {
        name: value[index * size : (index + 1) * size]
        if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == batch
        else value
        for name, value in inputs.items()
    }


def loss_of(output: Any) -> torch.Tensor:
    """The number to minimise, from a forward's output; the same as the traced one."""
    from costmodel.graph.loss import default_loss

    return default_loss(output)


def has_dropout(module: nn.Module) -> bool:
    """Whether any dropout of the module is active, so that runs cannot agree number by number."""
    return any(
        m.training
        and isinstance(p := getattr(m, "p", None), float)
        and p > 0
        and "dropout" in type(m).__name__.lower()
        for m in module.modules()
    )


def unused_parameters(module: nn.Module, inputs: Mapping[str, Any]) -> frozenset[str]:
    """Names of the parameters that the loss does not depend on, by one forward and a walk of its graph.

    DistributedDataParallel would wait for their gradients for ever.
    """
    import torch

    with torch.enable_grad():
        loss = loss_of(module(**inputs))
    seen: set[Any] = set()
    used: set[int] = set()
    pending = [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            used.add(id(leaf))
        pending.extend(following for following, _ in node.next_functions)
    return frozenset(name for name, p in module.named_parameters() if id(p) not in used)
