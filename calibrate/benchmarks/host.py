"""Raw timings behind the host costs: what Python, autograd, DTensor and the wrappers add around operators.

Each case is one call on the host clock. `calibrate.assemble` takes differences of them (a training chain
less the same operators called plainly, six buckets less two) to get the costs of a profile.

On a CPU the cases of several ranks are timed on the calling thread's own clock, so that waiting for the
other rank is no host cost, with cold caches between their pieces (see `chains`). What two ways of one
training differ by is timed by turns. The wide cases are whole training steps of layers as large as a
model's, on the wall clock: what their wrappers add per byte shows in them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from calibrate.benchmarks.base import Bench, Call, Case, register_benchmark
from calibrate.benchmarks.chains import (
    BLOCKS,
    PIECES,
    WIDTH,
    chain,
    chain_input,
    colder_identity,
    trained,
    trained_apart,
)
from calibrate.torch_names import unsynced_buffers

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

__all__ = [
    "DEFERRED_BYTES",
    "PARAMETERS_PER_BLOCK",
    "UPDATED",
    "WIDE_BYTES",
    "WIDE_OUTPUT_BYTES",
    "host_cases",
]

PARAMETERS_PER_BLOCK = 2
"""Weight and bias."""
UPDATED = 16
"""Tensors of the optimizer cases."""
WIDE_BYTES = 4 << 20
"""Weight of one wide block, fp32."""
_WIDE, _WIDE_ROWS = 1024, 128
WIDE_OUTPUT_BYTES = 4 * _WIDE * _WIDE_ROWS
"""Output of one wide block."""
_MIDDLE = 512
"""Width and rows of the middle-sized blocks: what weight gradients read has left the first two caches."""
_VISITS = 3
"""Their median leaves one slow moment out: costs are differences of these times, and small beside them."""
_PAIRS = 6
"""Turns of a pair in one call; their median counts."""
_LEAST_S = 1e-9
"""A difference below the clock's resolution: a time is positive."""
DEFERRED_BYTES = 2 * 4 * _MIDDLE * _MIDDLE
"""What the weight gradient of one such block is made of: its input and the gradient of its output."""


@register_benchmark("host")
def host_cases(bench: Bench) -> list[Case]:
    """Tiny tensors throughout, so that nothing but the host's work is timed."""
    cases = [
        _case("op", _tiny_op),
        _case("view", _views, calls=2),
        _case("plain_chain", _plain_chain),
        _case("training_chain", _training_chain),
        _case("plain_forward", _plain_forward),
        _case("forward_chain", _forward_chain),
        _case("backward_step", _backward_step),
    ]
    if bench.cuda:
        cases.append(_case("kernel", _tiny_op, host_clock=False))
    world = bench.world_size
    if world > 1:
        together: dict[str, Callable[[Bench], Call]] = {
            "dtensor_chain": _dtensor_chain,
            "plain_update": lambda b: _update(b, sharded=False),
            "dtensor_update": lambda b: _update(b, sharded=True),
        }
        for n in PIECES:
            together[f"blocks_{n}"] = _with_pieces(_blocks, n)
            together[f"layers_{n}"] = _with_pieces(_layers, n)
            together[f"tp_{n}"] = _with_pieces(_tensor_parallel, n)
            together[f"ddp_{n}"] = _with_pieces(_ddp_step, n)
            together[f"fsdp_{n}"] = _with_pieces(_fsdp_step, n)
            together[f"pipeline_{n}"] = _with_pieces(_pipeline_step, n)
            together[f"listed_{n}"] = _with_pieces(_listed_step, n)
        cases += [
            _case(name, prepare, n_ranks=world, own_clock=not bench.cuda)
            for name, prepare in together.items()
        ]
        pairs = {f"apart_{n}": _with_pieces(_taken_apart, n) for n in PIECES}
        if not bench.cuda:
            few = PIECES[0]
            pairs[f"middle_apart_{few}"] = lambda b: _taken_apart(b, few, width=_MIDDLE)
        cases += [_case(name, prepare, n_ranks=world, self_timed=True) for name, prepare in pairs.items()]
        for n in () if bench.cuda else PIECES:
            cases += [
                _case(f"wide_{name}_{n}", _with_pieces(make, n), n_ranks=world)
                for name, make in _WIDE_CASES.items()
            ]
    return [replace(case, visits=bench.visits(_VISITS)) for case in cases]


def _case(
    variant: str,
    prepare: Callable[[Bench], Call],
    *,
    calls: int = 1,
    n_ranks: int = 0,
    host_clock: bool = True,
    own_clock: bool = False,
    self_timed: bool = False,
) -> Case:
    return Case(
        kind="host",
        variant=variant,
        dtype="fp32",
        dims={},
        prepare=_on_thread_clock(prepare) if own_clock else prepare,
        calls=calls,
        n_ranks=n_ranks,
        host_clock=host_clock,
        self_timed=own_clock or self_timed,
    )


def _on_thread_clock(prepare: Callable[[Bench], Call]) -> Callable[[Bench], Call]:
    """The call timed by what its own thread used of a processor."""

    def prepared(bench: Bench) -> Call:
        call = prepare(bench)

        def timed() -> float:
            start = bench.thread_s()
            call()
            return bench.thread_s() - start

        return timed

    return prepared


def _with_pieces(make: Callable[[Bench, int], Call], n: int) -> Callable[[Bench], Call]:
    return lambda bench: make(bench, n)


def _tiny_op(bench: Bench) -> Call:
    import torch

    x = bench.take((WIDTH, WIDTH)).clone()
    return lambda: torch.mul(x, x)


def _views(bench: Bench) -> Call:
    x = bench.take((WIDTH, WIDTH)).clone()

    def call() -> None:
        x.view(-1)
        x.transpose(0, 1)

    return call


def _plain_chain(bench: Bench) -> Call:
    """The aten operators that the training chain runs, called one by one."""
    import torch

    aten = torch.ops.aten
    x, w, b = (bench.take(s).clone() for s in ((WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH,)))

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


def _plain_forward(bench: Bench) -> Call:
    """The aten operators of the chain's forward pass, called one by one."""
    import torch

    x, w, b = (bench.take(s).clone() for s in ((WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH,)))

    def call() -> None:
        for _ in range(BLOCKS):
            torch.add(torch.nn.functional.gelu(torch.addmm(b, x, w.t())), x)

    return call


def _training_chain(bench: Bench) -> Call:
    return trained(chain(bench), chain_input(bench).requires_grad_())


def _forward_chain(bench: Bench) -> Call:
    """The chain's forward pass without gradients."""
    import torch

    model, x = chain(bench), chain_input(bench)

    def call() -> None:
        with torch.no_grad():
            model(x)

    return call


def _backward_step(bench: Bench) -> Call:
    """One differentiated operator, with what a step does once: zero_grad and the start of backward."""
    import torch

    model = torch.nn.Linear(WIDTH, WIDTH, bias=False, device=bench.device)
    x, gradient = chain_input(bench), torch.ones(WIDTH, WIDTH, device=bench.device)

    def call() -> None:
        model.zero_grad()
        with torch.enable_grad():
            model(x).backward(gradient)

    return call


def _mesh(bench: Bench, n_ranks: int) -> DeviceMesh:
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh.from_group(bench.groups[n_ranks], bench.device.type)


def _dtensor_chain(bench: Bench) -> Call:
    """The training chain on replicated DTensors: no communication, every operator dispatched by DTensor."""
    from torch.distributed.tensor import DTensor, Replicate, distribute_module

    mesh = _mesh(bench, bench.world_size)
    model = distribute_module(chain(bench), mesh)
    x = DTensor.from_local(chain_input(bench), mesh, [Replicate()], run_check=False).requires_grad_()
    return trained(model, x)


def _pairs(bench: Bench, n: int) -> nn.Sequential:
    """`n` pairs of linear layers."""
    from torch import nn

    def layer() -> nn.Linear:
        return nn.Linear(WIDTH, WIDTH, device=bench.device)

    return nn.Sequential(*(nn.Sequential(layer(), layer(), colder_identity(bench)) for _ in range(n)))


def _layers(bench: Bench, n: int) -> Call:
    return trained(_pairs(bench, n), chain_input(bench).requires_grad_())


def _blocks(bench: Bench, n: int) -> Call:
    return trained(chain(bench, n, colder=True), chain_input(bench))


def _taken_apart(bench: Bench, n: int, *, width: int = WIDTH) -> Call:
    """What `n` blocks take longer where gradients of weights are taken apart; small ones are kept cold.

    Both ways take turns in one call: a machine's speed drifts by more than what lies between them.
    """
    import torch

    colder = width == WIDTH
    plain, apart = (
        way(chain(bench, n, colder=colder, width=width), chain_input(bench, width).requires_grad_())
        for way in (trained, trained_apart)
    )
    settle = torch.cuda.synchronize if bench.cuda else None
    clock = time.perf_counter if bench.cuda else bench.thread_s

    def seconds(call: Call) -> float:
        start = clock()
        call()
        if settle is not None:
            settle()
        return clock() - start

    def longer() -> float:
        found = []
        for turn in range(_PAIRS):
            if turn % 2:
                plain_s, apart_s = seconds(plain), seconds(apart)
            else:
                apart_s, plain_s = seconds(apart), seconds(plain)
            found.append(apart_s - plain_s)
        return max(statistics.median(found), _LEAST_S)

    return longer


def _tensor_parallel(bench: Bench, n: int) -> Call:
    """The pairs split by torch's layer styles: columns, then rows."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model, mesh = _pairs(bench, n), _mesh(bench, bench.world_size)
    for pair in model:
        parallelize_module(pair, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
    return trained(model, chain_input(bench).requires_grad_())


def _update(bench: Bench, *, sharded: bool) -> Call:
    """AdamW over UPDATED small tensors, plain or sharded DTensors."""
    import torch
    from torch.distributed.tensor import Shard, distribute_tensor

    tensors = [bench.take((WIDTH, WIDTH)).clone() for _ in range(UPDATED)]
    if sharded:
        mesh = _mesh(bench, bench.world_size)
        tensors = [distribute_tensor(t, mesh, [Shard(0)]) for t in tensors]
    parameters = [torch.nn.Parameter(t) for t in tensors]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    return torch.optim.AdamW(parameters).step


def _ddp_step(bench: Bench, n: int) -> Call:
    """`n` blocks, one gradient bucket each: their caps hold one small weight."""
    from torch.nn.parallel import DistributedDataParallel

    group = bench.groups[bench.world_size]
    model = DistributedDataParallel(
        chain(bench, n, colder=True),
        process_group=group,
        bucket_cap_mb=4 * WIDTH / 2**20,
        **unsynced_buffers(),
    )
    call = trained(model, chain_input(bench))
    call()  # the first step rebuilds the buckets in the order gradients came
    return call


def _fsdp_step(bench: Bench, n: int) -> Call:
    """`n` FSDP2 units of one block each, parameters gathered again for backward."""
    from torch.distributed.fsdp import fully_shard

    mesh = _mesh(bench, bench.world_size)
    model = chain(bench, n, colder=True)
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return trained(model, chain_input(bench))


def _wide(bench: Bench, n: int) -> nn.Sequential:
    """`n` linear layers of WIDE_BYTES."""
    from torch import nn

    return nn.Sequential(*(nn.Linear(_WIDE, _WIDE, bias=False, device=bench.device) for _ in range(n)))


def _wide_blocks(bench: Bench, n: int) -> Call:
    return trained(_wide(bench, n), bench.take((_WIDE_ROWS, _WIDE)).clone())


def _wide_ddp(bench: Bench, n: int) -> Call:
    from torch.nn.parallel import DistributedDataParallel

    group = bench.groups[bench.world_size]
    model = DistributedDataParallel(_wide(bench, n), process_group=group, bucket_cap_mb=WIDE_BYTES / 2**20)
    call = trained(model, bench.take((_WIDE_ROWS, _WIDE)).clone())
    call()
    return call


def _wide_fsdp(bench: Bench, n: int) -> Call:
    from torch.distributed.fsdp import fully_shard

    mesh, model = _mesh(bench, bench.world_size), _wide(bench, n)
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return trained(model, bench.take((_WIDE_ROWS, _WIDE)).clone())


def _wide_tp(bench: Bench, n: int) -> Call:
    """Layers split by columns and by rows in turn; each pair reduces its output and its input's gradient."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model, mesh = _wide(bench, n), _mesh(bench, bench.world_size)
    styles = (ColwiseParallel(), RowwiseParallel())
    parallelize_module(model, mesh, {str(i): styles[i % 2] for i in range(n)})
    return trained(model, bench.take((_WIDE_ROWS, _WIDE)).clone())


_WIDE_CASES = {"blocks": _wide_blocks, "ddp": _wide_ddp, "fsdp": _wide_fsdp, "tp": _wide_tp}


def _pipeline_step(bench: Bench, n: int) -> Call:
    """GPipe: torch walks through the micro-batches itself."""
    from torch.distributed.pipelining import ScheduleGPipe

    return _scheduled(bench, n, ScheduleGPipe)


def _listed_step(bench: Bench, n: int) -> Call:
    """Interleaved 1F1B: torch runs a list of actions, its transfers among them."""
    from torch.distributed.pipelining import ScheduleInterleaved1F1B

    return _scheduled(
        bench, n, lambda stage, m, loss_fn: ScheduleInterleaved1F1B([stage], m, loss_fn=loss_fn)
    )


def _scheduled(bench: Bench, n: int, schedule_of: Callable[..., Any]) -> Call:
    """A schedule over one block a stage with `n` micro-batches."""
    import torch
    from torch.distributed.pipelining import PipelineStage

    world = bench.world_size
    stage = PipelineStage(
        chain(bench, 1, colder=True), bench.rank, world, bench.device, group=bench.groups[world]
    )
    schedule = schedule_of(stage, n, loss_fn=lambda y, target: (y * target).sum())
    x = bench.take((WIDTH * n, WIDTH)).clone()
    parameters = list(stage.submod.parameters())
    first, last = bench.rank == 0, bench.rank == world - 1

    def call() -> None:
        with torch.enable_grad():
            if first:
                schedule.step(x, target=x if last else None)
            else:
                schedule.step(target=x if last else None)
        for parameter in parameters:
            parameter.grad = None

    return call
