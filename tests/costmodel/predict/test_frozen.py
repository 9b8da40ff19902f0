"""Parameters without gradients: stored, but not updated. Frozen ones are not reduced either; those that the
loss does not depend on have room in DDP's buckets, whose zeros it reduces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from costmodel.closed_form import Choices, evaluate
from costmodel.framework import load_framework
from costmodel.graph.loss import default_loss
from costmodel.graph.model_graph import Phase
from costmodel.hardware.store import load_profile
from costmodel.models import resolve
from costmodel.plan import Plan
from costmodel.predict import Forecaster, Prediction

WIDTH, RANK, BLOCKS = 128, 4, 4


class _Adapted(nn.Module):
    """A frozen layer beside a trained one of low rank (LoRA, arXiv 2106.09685, section 4.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, WIDTH, bias=False).requires_grad_(False)
        self.down = nn.Linear(WIDTH, RANK, bias=False)
        self.up = nn.Linear(RANK, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.base(x) + self.up(self.down(x)))


def adapted() -> Any:
    """The model of these tests, as `module:callable` returns it."""
    return nn.Sequential(*(_Adapted() for _ in range(BLOCKS))), (torch.randn(2, WIDTH),)


TRAINED = BLOCKS * 2 * WIDTH * RANK
FROZEN = BLOCKS * WIDTH * WIDTH


class _Backbone(nn.Module):
    """A frozen backbone with a small head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(BLOCKS))
        )
        self.blocks.requires_grad_(False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x))


class _Aside(nn.Module):
    """A layer that nothing calls, and one whose result nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.never = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.aside, self.head = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.layer(x))
        self.aside(x)
        return self.head(x)


class _Target(nn.Module):
    """What is learnt is the detached result of another network of its kind."""

    def __init__(self) -> None:
        super().__init__()
        self.learner, self.target = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.learner(x) - self.target(x).detach()).square().mean()


class _Middle(nn.Module):
    """A block with a frozen layer that gradients pass, and a parameter that it never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.never = nn.Parameter(torch.zeros(WIDTH, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(torch.relu(self.fixed(x)))


class _Early(nn.Module):
    """The loss reads the last block but one, as where features of an inner layer are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(BLOCKS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for block in self.blocks:
            x = torch.tanh(block(x))
            found.append(x)
        return found[-2].square().mean()


def backbone() -> Any:
    return _Backbone(), (torch.randn(2, WIDTH),)


def aside() -> Any:
    return _Aside(), (torch.randn(2, WIDTH),)


def target() -> Any:
    return _Target(), (torch.randn(2, WIDTH),)


def middle() -> Any:
    return nn.Sequential(*(_Middle() for _ in range(BLOCKS))), (torch.randn(2, WIDTH),)


def early() -> Any:
    return _Early(), (torch.randn(2, WIDTH),)


MODELS = (adapted, backbone, aside, target, middle, early)
every_model = pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)


@lru_cache(maxsize=12)
def forecaster(model: Callable[[], Any] = adapted, framework: str = "pytorch") -> Forecaster:
    return Forecaster(
        source=resolve(f"{__name__}:{model.__name__}"),
        profile=load_profile("a100-sxm4-80gb"),
        framework=load_framework(framework),
    )


def predicted(plan: str, model: Callable[[], Any] = adapted, framework: str = "pytorch") -> Prediction:
    return forecaster(model, framework).forecast(Plan.parse(plan)).prediction


@every_model
def test_counts_are_those_of_a_real_step(model: Callable[[], Any]) -> None:
    module, args = model()
    with FlopCounterMode(display=False) as counter:
        loss = default_loss(module(*args))
        forward = counter.get_total_flops()
        loss.backward()
    optimizer = torch.optim.AdamW(p for p in module.parameters() if p.requires_grad)
    optimizer.step()
    gradients = sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)
    states = sum(t.nbytes for state in optimizer.state.values() for key, t in state.items() if key != "step")

    graph = forecaster(model).graph(2)
    assert graph.n_parameters == sum(p.numel() for p in module.parameters())
    assert (graph.flop(Phase.FORWARD), graph.flop(Phase.BACKWARD)) == (
        forward,
        counter.get_total_flops() - forward,
    )
    stored = sum(p.nbytes for p in module.parameters())
    (memory,) = predicted("dp1.mbs2", model).memory
    assert (memory.parameters, memory.gradients, memory.optimizer) == (stored, gradients, states)
    (memory,) = predicted("dp2.mbs2.zero3", model).memory
    assert (memory.parameters, memory.gradients, memory.optimizer) == (stored / 2, gradients / 2, states / 2)


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@every_model
@pytest.mark.usefixtures("one_rank")
def test_buckets_are_those_of_the_reducer(model: Callable[[], Any]) -> None:
    module, args = model()
    replica = DistributedDataParallel(module, find_unused_parameters=True)
    reduced: list[int] = []

    def count(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        reduced.append(bucket.buffer().nbytes)
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    count.__annotations__.clear()  # torch compares them with classes, here they are texts
    replica.register_comm_hook(None, count)
    default_loss(replica(*args)).backward()
    (memory,) = predicted("dp2.mbs2", model).memory
    assert memory.communication == sum(reduced)
    # where gradients live in the buckets, those take the place of gradients
    (memory,) = predicted("dp2.mbs2", model, "pytorch-amp").memory
    assert memory.gradients == sum(reduced)


def test_frozen_blocks_that_no_gradient_passes_never_run_again() -> None:
    plain, full = (predicted(f"dp1.mbs2{how}", backbone) for how in ("", ".full"))
    assert full.breakdown_s["recompute"] == 0.0
    assert full.memory == plain.memory
    assert predicted("dp1.mbs2.full", middle).breakdown_s["recompute"] > 0.0


def test_flat_buffers_hold_zeros_for_what_no_gradient_reaches() -> None:
    module, _ = aside()
    trained = sum(p.numel() for p in module.parameters())
    framework = load_framework("megatron-core")
    (memory,) = predicted("dp1.mbs2", aside, "megatron-core").memory
    assert memory.gradients == framework.gradient_bytes * trained
    assert memory.optimizer == framework.optimizer_state_bytes * trained


def test_only_what_is_trained_has_gradients_and_state() -> None:
    (memory,) = predicted("dp2.mbs2").memory
    assert memory.parameters == 4 * (TRAINED + FROZEN)
    assert (memory.gradients, memory.optimizer) == (4 * TRAINED, 8 * TRAINED)
    assert memory.communication == 4 * TRAINED


@pytest.mark.parametrize(("stage", "parts"), [(1, (1, 1, 4)), (2, (1, 4, 4)), (3, (4, 4, 4))])
def test_zero_divides_what_there_is(stage: int, parts: tuple[int, int, int]) -> None:
    (memory,) = predicted(f"dp4.mbs2.zero{stage}").memory
    sizes = 4 * (TRAINED + FROZEN), 4 * TRAINED, 8 * TRAINED
    held = (memory.parameters, memory.gradients, memory.optimizer)
    assert held == tuple(size // n for size, n in zip(sizes, parts, strict=True))


@every_model
@pytest.mark.parametrize("framework", ["pytorch", "pytorch-amp"])
def test_closed_forms_count_alike(model: Callable[[], Any], framework: str) -> None:
    made = forecaster(model, framework)
    found = evaluate(
        made,
        Choices(
            n_devices=4,
            global_batch_size=16,
            n_units=made.n_units(),
            tp=(1, 2) if model is adapted else (1,),
            schedules=("1f1b",),
            zero=(0, 1, 2, 3),
            recompute=("none", "full"),
            max_micro_batch_size=4,
        ),
    )
    rows = np.flatnonzero(np.isfinite(found.memory_bytes))
    assert len(rows) > 8
    for row in rows[:: max(1, len(rows) // 12)]:
        plan = found.plan(int(row))
        prediction = made.forecast(plan).prediction
        assert found.memory_bytes[row] == pytest.approx(prediction.peak_memory_bytes, rel=1e-6), plan
        assert found.bound_s[row] <= prediction.step_time_s * (1 + 1e-6), plan
