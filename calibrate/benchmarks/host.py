"""Raw timings behind the host costs: what Python, autograd, DTensor and the wrappers add around operators.

Each case is one call on the host clock. `calibrate.assemble` takes differences of them (a training chain
less the same operators called plainly, eight buckets less one) to get the costs of a profile.
"""

from __future__ import annotations

from collections.abc import Callable

from calibrate.benchmarks.base import Bench, Call, Case, register_benchmark

__all__ = ["BLOCKS", "PIECES", "host_cases"]

BLOCKS = 8
"""Blocks of the training chain; a block is linear, GELU, add."""
PIECES = (2, 6)
"""Small and large number of buckets, FSDP units and micro-batches that are compared."""
_WIDTH = 8


@register_benchmark("host")
def host_cases(bench: Bench) -> list[Case]:
    """Tiny tensors throughout, so that nothing but the host's work is timed."""
    cases = [
        _case("op", _tiny_op),
        _case("view", _views, calls=2),
        _case("plain_chain", _plain_chain),
        _case("training_chain", _training_chain),
        _case("backward_step", _backward_step),
    ]
    if bench.cuda:
        cases.append(_case("kernel", _tiny_op, host_clock=False))
    world = max(bench.groups, default=1)
    if world > 1:
        cases.append(_case("dtensor_chain", _dtensor_chain, n_ranks=world))
        for n in PIECES:
            cases.append(_case(f"ddp_{n}", _with_pieces(_ddp_step, n), n_ranks=world))
            cases.append(_case(f"fsdp_{n}", _with_pieces(_fsdp_step, n), n_ranks=world))
            cases.append(_case(f"pipeline_{n}", _with_pieces(_pipeline_step, n), n_ranks=world))
    return cases


def _case(
    variant: str,
    prepare: Callable[[Bench], Call],
    *,
    calls: int = 1,
    n_ranks: int = 0,
    host_clock: bool = True,
) -> Case:
    return Case(
        kind="host",
        variant=variant,
        dtype="fp32",
        dims={},
        prepare=prepare,
        calls=calls,
        n_ranks=n_ranks,
        host_clock=host_clock,
    )


def _with_pieces(make: Callable[[Bench, int], Call], n: int) -> Callable[[Bench], Call]:
    return lambda bench: make(bench, n)


def _tiny_op(bench: Bench) -> Call:
    import torch

    x = bench.take((_WIDTH, _WIDTH)).clone()
    return lambda: torch.mul(x, x)


def _views(bench: Bench) -> Call:
    x = bench.take((_WIDTH, _WIDTH)).clone()

    def call() -> None:
        x.view(-1)
        x.transpose(0, 1)

    return call


def _plain_chain(bench: Bench) -> Call:
    """The aten operators that the training chain runs, called one by one."""
    import torch

    aten = torch.ops.aten
    x, w, b = (bench.take(s).clone() for s in ((_WIDTH, _WIDTH), (_WIDTH, _WIDTH), (_WIDTH,)))

    def call() -> None:
        for _ in range(BLOCKS):
            y = torch.addmm(b, x, w.t())
            torch.add(torch.nn.functional.gelu(y), x)
            g = aten.gelu_backward(x, y)
            torch.mm(g, w)
            torch.mm(g.t(), x)
            g.sum(0, keepdim=True)
            torch.add(g, x)

    return call


def _chain(bench: Bench) -> Callable[[torch.Tensor], torch.Tensor]:  # noqa: F821
    import torch
    from torch import nn

    linears = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH, device=bench.device) for _ in range(BLOCKS))
    gelu = nn.GELU()

    def run(x: torch.Tensor) -> torch.Tensor:
        for linear in linears:
            x = gelu(linear(x)) + x
        return x

    run.parameters = list(linears.parameters())  # type: ignore[attr-defined]
    return run
