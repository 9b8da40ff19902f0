"""A cluster of unlike nodes, described in a TOML file, and how a model runs on all of it.

name = "lab"

[[group]]
name = "fast"
hardware = "a100-sxm4-80gb"      # a profile's name or file, with a network variant after a colon
nodes = 2
gpus_per_node = 4
memory_bytes = 40e9              # optional: less than the device has

[[link]]                         # optional: what joins two groups, where slower than their own networks
between = ["fast", "slow"]
bytes_per_s = 1.25e9             # between a node of each, one direction
latency_s = 30e-6
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from costmodel.errors import InfeasibleError, InputFileError, UsageError

if TYPE_CHECKING:
    from costmodel.plan import Plan
    from costmodel.predict.mixed import MixedForecast
    from costmodel.predict.pools import Interlink, Pool
    from costmodel.predict.staged import StagedForecast

__all__ = ["Cluster", "ClusterForecast", "Group", "GroupLink", "cluster", "forecast_cluster", "load_cluster"]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Group(_Table):
    """Equal nodes."""

    name: str = Field(min_length=1)
    hardware: str = Field(min_length=1)
    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(ge=1)
    memory_bytes: float = Field(default=0.0, ge=0)
    """Of one device; 0: all that it has."""


class GroupLink(_Table):
    """What joins a node of one group to a node of another, one direction."""

    between: tuple[str, str]
    bytes_per_s: float = Field(gt=0)
    latency_s: float = Field(default=0.0, ge=0)


class Cluster(_Table):
    """Groups of nodes and the links between them."""

    name: str = "cluster"
    group: tuple[Group, ...] = Field(min_length=1)
    link: tuple[GroupLink, ...] = ()

    @model_validator(mode="after")
    def _names_known(self) -> Cluster:
        names = [group.name for group in self.group]
        if len(set(names)) != len(names):
            raise ValueError(f"groups share a name: {names}; give each its own")
        joined = set()
        for link in self.link:
            a, b = link.between
            if a == b or {a, b} - set(names):
                raise ValueError(f"link between {a!r} and {b!r}: must join two of the groups {names}")
            if frozenset(link.between) in joined:
                raise ValueError(f"two links between {a!r} and {b!r}: keep one")
            joined.add(frozenset(link.between))
        return self

    @property
    def n_devices(self) -> int:
        """Devices of all groups."""
        return sum(group.nodes * group.gpus_per_node for group in self.group)


def load_cluster(path: Path) -> Cluster:
    """Read a description. Raises InputFileError naming the field, the rule and an example."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputFileError(
            f"cluster file {path}: {error.strerror}; give a TOML file with [[group]] tables"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputFileError(f"cluster file {path} is not valid TOML: {error}") from error
    try:
        return Cluster.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        got = "" if isinstance(first.get("input"), (dict, list)) else f" (got {first.get('input')!r})"
        raise InputFileError(
            f"cluster file {path}: {place}: {first['msg']}{got}; a group needs name, hardware and "
            "gpus_per_node, a link needs between and bytes_per_s"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterForecast:
    """Both ways to use unlike groups; `why_not`: way -> why there is none."""

    cluster: str
    n_devices: int
    pipeline: StagedForecast | None
    replicas: MixedForecast | None
    why_not: Mapping[str, str]
    warnings: tuple[str, ...] = ()
    """Notes of the traces."""

    @property
    def best(self) -> str:
        """The faster way: pipeline or replicas."""
        times = {"pipeline": self.pipeline, "replicas": self.replicas}
        return min((f.step_time_s, way) for way, f in times.items() if f is not None)[1]

    @property
    def step_time_s(self) -> float:
        """Step of the faster way."""
        return min(f.step_time_s for f in (self.pipeline, self.replicas) if f is not None)

    def to_dict(self) -> dict[str, Any]:
        """The fields of `cluster --json`."""
        return {
            "cluster": self.cluster,
            "n_devices": self.n_devices,
            "best": self.best,
            "step_time_s": self.step_time_s,
            "pipeline": None if self.pipeline is None else self.pipeline.to_dict(),
            "replicas": None if self.replicas is None else self.replicas.to_dict(),
            "why_not": dict(self.why_not),
            "warnings": list(self.warnings),
        }


def forecast_cluster(
    pools: Sequence[Pool],
    links: Mapping[frozenset[int], Interlink],
    template: Plan,
    *,
    name: str,
    global_batch_size: int,
    micro_batch_size: int | None = None,
    max_stages: int = 0,
) -> ClusterForecast:
    """Stages over the groups in the best order, and replicas on all of them with uneven shares.

    Raises InfeasibleError where neither fits, with the reason of each.
    """
    from costmodel.predict.mixed import best_shares
    from costmodel.predict.staged import best_pipeline

    why_not: dict[str, str] = {}
    pipeline = replicas = None
    try:
        replicas = best_shares(
            pools,
            template.with_(schedule="1f1b"),
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            links=links,
        )
    except InfeasibleError as error:
        why_not["replicas"] = str(error)
    try:
        pipeline = best_pipeline(
            pools,
            template,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            max_stages=max_stages,
            links=links,
        )
    except InfeasibleError as error:
        why_not["pipeline"] = str(error)
    if pipeline is None and replicas is None:
        raise InfeasibleError(f"stages: {why_not['pipeline']}; replicas: {why_not['replicas']}")
    return ClusterForecast(
        cluster=name,
        n_devices=sum(p.n_nodes * p.devices_per_node for p in pools),
        pipeline=pipeline,
        replicas=replicas,
        why_not=why_not,
        warnings=tuple(dict.fromkeys(note for pool in pools for note in pool.forecaster.notes)),
    )


def cluster(
    model: str,
    *,
    description: Path | Cluster,
    global_batch_size: int,
    micro_batch_size: int | None = None,
    template: str = "dp1",
    max_stages: int = 0,
    seq_len: int | None = None,
    framework: str = "pytorch",
    optimizer: str = "adamw",
    overrides: Sequence[str] | Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> ClusterForecast:
    """A model on a cluster of unlike nodes. `template`: what all devices share (tp, recomputation,
    schedule), as a plan. Raises InputFileError, PlanError, InfeasibleError."""
    from costmodel.predict.pools import Interlink, Pool
    from planner.api import forecaster, parse_plan

    found = description if isinstance(description, Cluster) else load_cluster(description)
    pools = [
        Pool(
            name=group.name,
            forecaster=forecaster(
                model,
                hardware=group.hardware,
                seq_len=seq_len,
                framework=framework,
                optimizer=optimizer,
                overrides=overrides,
                trust_remote_code=trust_remote_code,
            ),
            n_nodes=group.nodes,
            devices_per_node=group.gpus_per_node,
            memory_limit_bytes=group.memory_bytes,
        )
        for group in found.group
    ]
    for group, pool in zip(found.group, pools, strict=True):
        network = pool.forecaster.profile.network
        if network is not None and group.gpus_per_node > network.ranks_per_node:
            raise UsageError(
                f"group {group.name!r}: gpus_per_node({group.gpus_per_node}) is more than the "
                f"{network.ranks_per_node} devices of a {group.hardware} node; give more nodes, or a profile "
                "of such a node"
            )
    place = {group.name: i for i, group in enumerate(found.group)}
    links = {
        frozenset((place[link.between[0]], place[link.between[1]])): Interlink(
            bytes_per_s=link.bytes_per_s, latency_s=link.latency_s
        )
        for link in found.link
    }
    return forecast_cluster(
        pools,
        links,
        parse_plan(template),
        name=found.name,
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        max_stages=max_stages,
    )
