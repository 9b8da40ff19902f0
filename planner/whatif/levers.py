"""Levers: one kind of hardware speed, made faster or slower by a factor, in every place that says it.

A factor of 2 is twice as fast: rates are doubled, latencies and overheads halved. The levers take disjoint
parts of what times are made of, and all of them together take every part: with every lever at f a step takes
1/f of its time, so that the elasticities of one step add up to -1 (Euler's theorem on homogeneous functions).
What a profile does not hold stays as it is: kinds of operators that it has no fit of, and the start of
collectives over links that were never measured, are priced with constants of the project.

>>> LEVERS["inter_link"].about
'bandwidth between nodes'
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from costmodel.errors import UsageError
from costmodel.framework import HOST_TIMES
from costmodel.registry import Registry

if TYPE_CHECKING:
    from costmodel.framework import FrameworkProfile
    from costmodel.hardware.host_machine import HostMachine
    from costmodel.hardware.network_schema import NetworkModel, PathFit
    from costmodel.hardware.schema import HardwareProfile
    from costmodel.predict import Forecaster

__all__ = ["LEVERS", "Hardware", "Lever", "require_factor", "scaled"]

_COPIES = "fsdp_copy_s_per_byte"
"""A host cost of a profile that is memory traffic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a forecast takes its speeds from."""

    profile: HardwareProfile
    framework: FrameworkProfile
    host: HostMachine


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """One kind of speed. `change` gives the hardware with that speed times a factor."""

    name: str
    about: str
    change: Callable[[Hardware, float], Hardware]


LEVERS: Registry[Lever] = Registry("lever")


def _lever(name: str, about: str) -> Callable[[Callable[[Hardware, float], Hardware]], Lever]:
    def file(change: Callable[[Hardware, float], Hardware]) -> Lever:
        return LEVERS.register(name)(Lever(name=name, about=about, change=change))

    return file


def require_factor(name: str, factor: float) -> float:
    """The factor. Raises UsageError where it is not positive and finite."""
    if not (factor > 0 and math.isfinite(factor)):
        raise UsageError(f"{name}={factor:g}: a speed must be a positive factor, for example 0.5 or 2")
    return factor


def scaled(forecaster: Forecaster, factors: Mapping[str, float]) -> Forecaster:
    """The forecaster on hardware whose levers are times their factors. Raises UsageError on an unknown lever
    or a factor that is not positive."""
    hardware = Hardware(profile=forecaster.profile, framework=forecaster.framework, host=forecaster.host)
    for name, factor in factors.items():
        lever = LEVERS[name]
        if require_factor(name, factor) != 1.0:
            hardware = lever.change(hardware, factor)
    return forecaster.on(profile=hardware.profile, framework=hardware.framework, host=hardware.host)


def _profile(hardware: Hardware, **changes: object) -> Hardware:
    return Hardware(
        profile=hardware.profile.model_copy(update=changes), framework=hardware.framework, host=hardware.host
    )


def _device(hardware: Hardware, **changes: object) -> Hardware:
    return _profile(hardware, device=hardware.profile.device.model_copy(update=changes))


def _network(hardware: Hardware, change: Callable[[NetworkModel], NetworkModel]) -> Hardware:
    network = hardware.profile.network
    return hardware if network is None else _profile(hardware, network=change(network))


def _paths(network: NetworkModel, change: Callable[[PathFit], PathFit]) -> NetworkModel:
    fits = tuple(
        fit.model_copy(update={"paths": tuple(change(path) for path in fit.paths)}) for fit in network.fits
    )
    return network.model_copy(update={"fits": fits})


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


@_lever("compute", "arithmetic rate of the device, all types")
def _compute(hardware: Hardware, factor: float) -> Hardware:
    device = hardware.profile.device
    return _device(
        hardware,
        peak_flop_per_s={dtype: rate * factor for dtype, rate in device.peak_flop_per_s.items()},
        long_run_flop_per_s={dtype: rate * factor for dtype, rate in device.long_run_flop_per_s.items()},
    )


@_lever("memory", "bandwidth of the device's memory, copies among ranks that share it included")
def _memory(hardware: Hardware, factor: float) -> Hardware:
    profile = hardware.profile
    host = dict(profile.host)
    if _COPIES in host:
        host[_COPIES] = host[_COPIES].model_copy(update={"value_s": host[_COPIES].value_s / factor})

    def copies(path: PathFit) -> PathFit:
        return path.model_copy(
            update={
                "own_bytes_per_s": _times(path.own_bytes_per_s, factor),
                "spill_bytes_per_s": _times(path.spill_bytes_per_s, factor),
            }
        )

    changed = _device(hardware, memory_bytes_per_s=profile.device.memory_bytes_per_s * factor)
    changed = _profile(
        changed, host=host, contention_s_per_byte=changed.profile.contention_s_per_byte / factor
    )
    return _network(changed, lambda network: _paths(network, copies))


@_lever("intra_link", "bandwidth inside a node")
def _intra_link(hardware: Hardware, factor: float) -> Hardware:
    def change(network: NetworkModel) -> NetworkModel:
        links = tuple(
            link.model_copy(update={"bytes_per_s": link.bytes_per_s * factor}) for link in network.intra
        )
        faster = _paths(
            network,
            lambda path: path.model_copy(
                update={"intra_bytes_per_s": _times(path.intra_bytes_per_s, factor)}
            ),
        )
        return faster.model_copy(update={"intra": links})

    return _network(hardware, change)


@_lever("inter_link", "bandwidth between nodes")
def _inter_link(hardware: Hardware, factor: float) -> Hardware:
    def change(network: NetworkModel) -> NetworkModel:
        links = tuple(
            link.model_copy(update={"bytes_per_s": link.bytes_per_s * factor}) for link in network.inter
        )
        faster = _paths(
            network,
            lambda path: path.model_copy(
                update={"inter_bytes_per_s": _times(path.inter_bytes_per_s, factor)}
            ),
        )
        return faster.model_copy(update={"inter": links})

    return _network(hardware, change)


@_lever("link_latency", "start, steps and ramp of collectives, inside a node and between nodes")
def _link_latency(hardware: Hardware, factor: float) -> Hardware:
    fields = ("base_s", "step_s", "node_step_s", "ramp_s")

    def change(network: NetworkModel) -> NetworkModel:
        faster = _paths(
            network,
            lambda path: path.model_copy(update={name: getattr(path, name) / factor for name in fields}),
        )
        links = {
            side: tuple(
                link.model_copy(update={"latency_s": link.latency_s / factor})
                for link in getattr(network, side)
            )
            for side in ("intra", "inter")
        }
        return faster.model_copy(update=links)

    return _network(hardware, change)


@_lever("kernel_overhead", "launches, rows and latencies inside kernels: what no rate of the device covers")
def _kernel_overhead(hardware: Hardware, factor: float) -> Hardware:
    fits = tuple(
        fit.model_copy(
            update={
                "parameters": {
                    # units end a name: these are seconds, or seconds per something
                    name: value / factor if name.endswith("_s") or "_s_per_" in name else value
                    for name, value in fit.parameters.items()
                }
            }
        )
        for fit in hardware.profile.operators
    )
    return _profile(hardware, operators=fits)


@_lever("host", "the host's dispatch of operators and collectives, and what it does once a step")
def _host(hardware: Hardware, factor: float) -> Hardware:
    costs = {
        name: value if name == _COPIES else value.model_copy(update={"value_s": value.value_s / factor})
        for name, value in hardware.profile.host.items()
    }
    framework = hardware.framework
    changed = _profile(hardware, host=costs)
    return Hardware(
        profile=changed.profile,
        framework=framework.model_copy(
            update={name: getattr(framework, name) / factor for name in HOST_TIMES}
        ),
        host=hardware.host,
    )


@_lever("offload", "link between host and device, memory and drives of the host")
def _offload(hardware: Hardware, factor: float) -> Hardware:
    link = hardware.profile.device.host_bytes_per_s
    host = hardware.host.model_copy(
        update={
            "memory_bytes_per_s": hardware.host.memory_bytes_per_s * factor,
            "storage_bytes_per_s": hardware.host.storage_bytes_per_s * factor,
        }
    )
    changed = _device(hardware, host_bytes_per_s=_times(link, factor))
    return Hardware(profile=changed.profile, framework=changed.framework, host=host)
