"""Recurrent layers as a GPU's library runs them: one call a layer and direction.

On a CPU torch writes nn.GRU and nn.RNN out step by step and hands nn.LSTM to oneDNN; on a GPU cuDNN takes
all three (aten/src/ATen/native/RNN.cpp). Inside a `FusedRecurrence` a trace on the CPU sees what a GPU is
asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["FusedRecurrence", "recurrent_layer"]

_KEPT = {"lstm": 5, "gru": 5, "rnn_tanh": 0, "rnn_relu": 0}
"""Values kept for backward beside the output, per step, sample and hidden unit: gates and cell state; gates
and the state's part of the new gate (aten/src/ATen/native/cuda/RNN.cu, GRU_WORKSPACE_MULTIPLIER)."""


@torch.library.custom_op("foreshard::recurrent_layer", mutates_args=())
def recurrent_layer(
    x: torch.Tensor,
    w_input: torch.Tensor,
    w_state: torch.Tensor,
    b_input: torch.Tensor | None,
    b_state: torch.Tensor | None,
    first: torch.Tensor,
    kept: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One direction of one layer: x [steps, batch, features] to [steps, batch, hidden], and what is kept.

    There to be traced: it computes nothing. Raises NotImplementedError on tensors with values.
    """
    raise NotImplementedError("a traced layer has no values")


@recurrent_layer.register_fake
def _forward(
    x: torch.Tensor,
    w_input: torch.Tensor,
    w_state: torch.Tensor,
    b_input: torch.Tensor | None,
    b_state: torch.Tensor | None,
    first: torch.Tensor,
    kept: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    steps, batch = x.shape[:2]
    hidden = w_state.shape[1]
    return x.new_empty(steps, batch, hidden), x.new_empty(steps, batch, kept * hidden)


@torch.library.custom_op("foreshard::recurrent_layer_backward", mutates_args=())
def _gradient(
    x: torch.Tensor,
    w_input: torch.Tensor,
    w_state: torch.Tensor,
    first: torch.Tensor,
    biased: bool,
    out: torch.Tensor,
    kept: torch.Tensor,
    grad: torch.Tensor,
) -> list[torch.Tensor]:
    raise NotImplementedError("a traced layer has no values")


@_gradient.register_fake
def _gradients(
    x: torch.Tensor,
    w_input: torch.Tensor,
    w_state: torch.Tensor,
    first: torch.Tensor,
    biased: bool,
    out: torch.Tensor,
    kept: torch.Tensor,
    grad: torch.Tensor,
) -> list[torch.Tensor]:
    made = [torch.empty_like(t) for t in (x, w_input, w_state, first)]
    return made + [w_state.new_empty(w_state.shape[0]) for _ in range(2 * biased)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, w_input, w_state, b_input, _, first, _ = inputs
    ctx.biased = b_input is not None
    ctx.save_for_backward(x, w_input, w_state, first, *output)


def _backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, w_input, w_state, first, out, kept = ctx.saved_tensors
    made = torch.ops.foreshard.recurrent_layer_backward(
        x, w_input, w_state, first, ctx.biased, out, kept, grad
    )
    biases = made[4:] if ctx.biased else (None, None)
    return (*made[:3], *biases, made[3], None)


recurrent_layer.register_autograd(_backward, setup_context=_keep)


class FusedRecurrence(TorchFunctionMode):
    """Inside, nn.LSTM, nn.GRU and nn.RNN are one call a layer and direction."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        # packed sequences and projections of the state are left as they are
        if name in _KEPT and not kwargs and len(args) == 9 and isinstance(args[2], (list, tuple)):
            biased, layers, directions = bool(args[3]), int(args[4]), 1 + bool(args[7])
            if len(args[2]) == layers * directions * (4 if biased else 2):
                return _layers(name, *args)
        return func(*args, **(kwargs or {}))


def _layers(
    name: str,
    x: torch.Tensor,
    first: Any,
    weights: Sequence[torch.Tensor],
    biased: bool,
    layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """The layers one after another, as torch.lstm, torch.gru, torch.rnn_tanh and torch.rnn_relu take them."""
    states = first if isinstance(first, (list, tuple)) else (first,)
    directions = 1 + bool(bidirectional)
    each = 4 if biased else 2
    out = x.transpose(0, 1) if batch_first else x
    last = []
    for layer in range(layers):
        made = []
        for direction in range(directions):
            number = layer * directions + direction
            own = (*weights[number * each : (number + 1) * each], None, None)[:4]
            y, _ = torch.ops.foreshard.recurrent_layer(out, *own, states[0][number], _KEPT[name])
            made.append(y)
            last.append(y[0 if direction else -1])
        out = made[0] if directions == 1 else torch.cat(made, dim=-1)
        if layer < layers - 1:
            out = torch.nn.functional.dropout(out, dropout, training)
    final = torch.stack(last)
    return (out.transpose(0, 1) if batch_first else out, *[final] * len(states))
