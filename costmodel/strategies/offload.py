"""Offload: what of a step lives and works on the host.

    zero-offload          gradients to the host, Adam there, parameters back (arXiv 2101.06840)
    zero-offload-delayed  the same, the update one step late, beside the next step (section 5.2 there)
    zero-infinity         parameters live on the host too and stream in unit by unit (arXiv 2104.07857)
    zero-infinity-nvme    optimizer state on drives
    cotrain               the update split between device and host so that both end together (ICPP 2023)
    cpu-update            the host updates each unit beside the backward (fine-grained CPU+GPU training)

Schedules that swap stages (harmony) need the rates of the host link alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from costmodel.errors import PlanError
from costmodel.estimate import FloatArray
from costmodel.framework import FrameworkProfile
from costmodel.hardware.host_machine import HostMachine
from costmodel.hardware.schema import HardwareProfile
from costmodel.plan import Plan
from costmodel.schedules import SCHEDULES
from costmodel.step.options import Offload
from costmodel.strategies.registry import STRATEGIES, Strategy, chosen

if TYPE_CHECKING:
    from costmodel.step import StepResult

__all__ = ["FAMILY", "host_bytes", "host_rates", "is_split", "offload_of", "split_update"]

FAMILY = "offload"
_ABOUT = {
    "zero-offload": "gradients to the host, Adam there, parameters back",
    "zero-offload-delayed": "ZeRO-Offload with the update one step late, beside the next step",
    "zero-infinity": "parameters on the host, streamed in unit by unit; Adam on the host",
    "zero-infinity-nvme": "ZeRO-Infinity with the optimizer's state on drives",
    "cotrain": "the update split between device and host so that both end together",
    "cpu-update": "the host updates each unit while the backward goes on",
}
for _name, _about in _ABOUT.items():
    STRATEGIES.register(_name)(Strategy(name=_name, family=FAMILY, about=_about))

_Bytes = TypeVar("_Bytes", float, FloatArray)
_ADAM_TRAFFIC = 28.0
"""Bytes of DRAM traffic per parameter of a host Adam: reads parameter, gradient and both moments in fp32,
writes all but the gradient. The half-precision copy that goes back comes on top."""
_FRACTION_TOLERANCE = 0.004


def host_rates(
    profile: HardwareProfile, host: HostMachine, framework: FrameworkProfile, world_size: int
) -> Offload:
    """Rates of the host link and of the host's work, for one of the ranks that a node's host serves.

    Raises PlanError where the profile has no link to a host.
    """
    nominal = profile.device.host_bytes_per_s
    if profile.device.kind == "cpu" or not nominal:
        raise PlanError(
            f"profile {profile.name!r} has no link between host and device, so nothing can be offloaded; "
            "take a GPU's profile"
        )
    per_node = 1 if profile.network is None else max(1, profile.network.ranks_per_node)
    ranks = min(per_node, world_size)
    link = nominal * host.link_efficiency
    traffic = (_ADAM_TRAFFIC + framework.parameter_bytes) / framework.parameter_bytes
    return Offload(
        h2d_bytes_per_s=link,
        d2h_bytes_per_s=link,
        host_update_bytes_per_s=host.memory_bytes_per_s * host.update_efficiency / ranks / traffic,
        storage_bytes_per_s=host.storage_bytes_per_s / ranks,
        gradient_per_parameter_byte=framework.gradient_comm_bytes / framework.parameter_bytes,
        state_per_parameter_byte=framework.optimizer_state_bytes / framework.parameter_bytes,
    )


def offload_of(
    plan: Plan, profile: HardwareProfile, host: HostMachine, framework: FrameworkProfile
) -> Offload | None:
    """What the plan's words and schedule ask of the host; None where they ask nothing. Raises PlanError."""
    word = chosen(plan, FAMILY)
    swaps = SCHEDULES[plan.schedule].swaps
    if word is None and not swaps:
        return None
    rates = host_rates(profile, host, framework, plan.world_size)
    if swaps:
        if word is not None:
            raise PlanError(f"plan {plan}: {plan.schedule} moves stages itself; leave {word!r} out")
        return replace(rates, host_update_bytes_per_s=0.0, storage_bytes_per_s=0.0)
    return replace(
        rates,
        delayed_update=word == "zero-offload-delayed",
        eager_update=word == "cpu-update",
        stream_weights=word in ("zero-infinity", "zero-infinity-nvme"),
        storage_bytes_per_s=rates.storage_bytes_per_s if word == "zero-infinity-nvme" else 0.0,
    )


def host_bytes(offload: Offload, *, updated_bytes: _Bytes, own_bytes: _Bytes) -> _Bytes:
    """What the host holds for a rank that updates so many bytes of parameters, as the device holds them, and
    has `own_bytes` of them itself.

    The optimizer's state, unless drives hold it, and gradients of the host's share of the update; parameters
    where they stream in. Stages that are swapped leave whole.
    """
    state = 0.0 if offload.storage_bytes_per_s else offload.state_per_parameter_byte
    each = state + offload.gradient_per_parameter_byte
    swapped = not offload.host_update_bytes_per_s
    held = updated_bytes * (each if swapped else (1.0 - offload.device_fraction) * each)
    return held + own_bytes if swapped or offload.stream_weights else held


def is_split(plan: Plan) -> bool:
    """Whether device and host share the update."""
    return chosen(plan, FAMILY) == "cotrain"


def split_update(simulate: Callable[[float], StepResult]) -> StepResult:
    """CoTrain: the step with the device's share of the update that makes it shortest.

    `simulate`: share -> step. The step is the later of two ends, one rising and one falling with the share,
    so it has one minimum (bounded scalar search).
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda share: simulate(float(share)).step_time_s,
        bounds=(0.0, 1.0),
        method="bounded",
        options={"xatol": _FRACTION_TOLERANCE},
    )
    candidates = [0.0, float(found.x), 1.0]
    return min(map(simulate, candidates), key=lambda step: step.step_time_s)
