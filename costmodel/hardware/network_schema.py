"""NetworkModel: how the ranks of a machine are joined and what its collectives take, as data.

Embedded in `HardwareProfile.network`. A variant of a network is an intra-node link, an inter-node link, or
both joined by "+": "pcie", "infiniband-ndr", "pcie+ethernet-100g"; the default links stand for what a
variant leaves out. Bandwidths are per rank (intra-node) or per network interface (inter-node), one
direction. Priced by `costmodel.hardware.collectives.collective_times`.

>>> link = Link(name="nvlink4", kind="nvswitch", latency_s=1e-6, bytes_per_s=450e9, source="datasheet")
>>> network = NetworkModel(name="h100", ranks_per_node=8, intra=(link,), source="datasheet")
>>> network.links(None)[0].name
'nvlink4'
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from costmodel.errors import UsageError

__all__ = [
    "CollectiveFit",
    "Link",
    "LinkKind",
    "MeshEdge",
    "NetworkModel",
    "NetworkResidual",
    "PathFit",
    "SizeCurve",
]

LinkKind = Literal[
    "nvswitch",
    "nvlink_mesh",
    "nvlink_bridge",
    "pcie",
    "pcie_peer",
    "pcie_host",
    "shared_memory",
    "infiniband",
    "roce",
    "ethernet",
    "efa",
    "omnipath",
    "loopback",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class MeshEdge(_Frozen):
    """`n_links` links between local ranks `a` and `b`."""

    a: int = Field(ge=0)
    b: int = Field(ge=0)
    n_links: int = Field(default=1, ge=1)


class Link(_Frozen):
    """One way of joining ranks. `bytes_per_s`: nominal, one direction, per rank or per interface.

    `efficiency`: share of `bytes_per_s` that large transfers reach (headers, encoding, protocol), used
    where no fit of the collective exists. `mesh`: pairs joined directly (`bytes_per_s` is then of one link).
    Kind pcie: as the host's slots happen to be joined; pcie_peer: devices write into each other's memory;
    pcie_host: they cannot, and everything goes through the host's memory.
    """

    name: str
    kind: LinkKind
    latency_s: float = Field(ge=0)
    bytes_per_s: float = Field(gt=0)
    efficiency: float = Field(default=0.8, gt=0, le=1)
    nics_per_node: int = Field(default=1, ge=1)
    """Interfaces of a node (inter-node links)."""
    shared_bytes_per_s: float | None = Field(default=None, gt=0)
    """What all ranks of a node get of it together, one direction, where they share it; None: no limit."""
    group_ranks: int | None = None
    """Ranks joined by this link where it does not reach the whole node (bridged pairs)."""
    exchange_efficiency: float | None = Field(default=None, gt=0, le=1)
    """As `efficiency`, where every rank sends to all of other nodes at once (all_to_all); None: the same."""
    rank_exchange_bytes_per_s: float | None = Field(default=None, gt=0)
    """What the library passes on from one rank in such an exchange, one direction, whatever the interface
    carries; None: no limit."""
    multicast_efficiency: float | None = Field(default=None, gt=0, le=1)
    """Share of `bytes_per_s` that all-reduce by the switch (NVLS) reaches; None: it cannot."""
    mesh: tuple[MeshEdge, ...] = ()
    source: str

    @property
    def carried_bytes_per_s(self) -> float:
        """What large transfers reach over all interfaces of a node, one direction."""
        return self.bytes_per_s * self.nics_per_node * self.efficiency

    def exchanged_bytes_per_s(self, ranks_per_node: int, carried_bytes_per_s: float | None = None) -> float:
        """What a node's ranks send to other nodes in an exchange of all with all, one direction: what the
        interfaces carry (or were measured to) or the library passes on from each rank, whichever is less."""
        share = (self.exchange_efficiency or self.efficiency) / self.efficiency
        exchanged = (carried_bytes_per_s or self.carried_bytes_per_s) * share
        passed = self.rank_exchange_bytes_per_s
        return exchanged if passed is None else min(exchanged, passed * ranks_per_node)

    @property
    def multicast(self) -> bool:
        """Whether the switch can reduce and multicast."""
        return self.multicast_efficiency is not None


class NetworkResidual(_Frozen):
    """Cross-validated error of a fit: no size was scored by a fit that saw it."""

    mape: float
    median_ape: float
    bias: float
    """Mean of predicted / measured - 1."""
    coverage: float
    """Share of rows inside their 90 % interval."""
    n: int


class PathFit(_Frozen):
    """One algorithm under one protocol.

    t = base + steps step + node_steps node_step + busy + sqrt(ramp busy) + spill, where
    busy = max(intra_volume size / intra_bytes_per_s + own_volume size / own_bytes_per_s,
               inter_volume size / inter_bytes_per_s) and
    spill = max(0, intra_volume size - spill_bytes) / spill_bytes_per_s: what no longer fits the caches.
    Steps and volumes belong to the algorithm (`costmodel.hardware.collectives.algorithms`).
    """

    algorithm: str
    protocol: str
    base_s: float = Field(ge=0)
    step_s: float = Field(default=0.0, ge=0)
    """Per step between ranks of a node."""
    node_step_s: float = Field(default=0.0, ge=0)
    """Per step between nodes."""
    intra_bytes_per_s: float | None = Field(default=None, gt=0)
    """Of one rank's port, one direction; on a mesh: of one ring. None: no limit."""
    inter_bytes_per_s: float | None = Field(default=None, gt=0)
    """Of all interfaces of one node together, one direction. None: no limit."""
    own_bytes_per_s: float | None = Field(default=None, gt=0)
    """At which a rank passes its own part to itself (a copy in its memory). None: no time."""
    ramp_s: float = Field(default=0.0, ge=0)
    """How slowly bandwidth is reached: the pipeline's fill grows as sqrt(ramp_s busy)."""
    spill_bytes: float = Field(default=0.0, ge=0)
    spill_bytes_per_s: float | None = Field(default=None, gt=0)
    min_ranks: int = 2
    max_ranks: int | None = None
    """Most ranks per node that this path serves."""


class SizeCurve(_Frozen):
    """Smooth correction of ln(time) over log2(size), for groups of one shape; linear between knots."""

    n_ranks: int = Field(ge=2)
    n_nodes: int = Field(default=1, ge=1)
    version: str = ""
    """Library version (major.minor) the samples were taken with; "" where unknown."""
    log2_bytes: tuple[float, ...]
    log_ratio: tuple[float, ...]
    log_sigma: tuple[float, ...]

    @model_validator(mode="after")
    def _same_length(self) -> SizeCurve:
        if not 0 < len(self.log2_bytes) == len(self.log_ratio) == len(self.log_sigma):
            raise ValueError("log2_bytes, log_ratio and log_sigma of a curve must have one length")
        if any(b <= a for a, b in zip(self.log2_bytes, self.log2_bytes[1:], strict=False)):
            raise ValueError("log2_bytes of a curve must rise")
        return self


class CollectiveFit(_Frozen):
    """One collective over one link: the paths NCCL (or gloo) may choose from and what they leave over."""

    op: str
    link: str
    """Name of the intra-node link, or of the inter-node link for groups that span nodes."""
    impl: str = "nccl"
    """nccl, gloo, or custom:<library>:<kernel>."""
    timing: str
    """How the samples were taken (nccl-tests, kernel_only, cuda_graph, eager_loop, torch_loop)."""
    paths: tuple[PathFit, ...] = Field(min_length=1)
    curves: tuple[SizeCurve, ...] = ()
    log_sigma: float = Field(ge=0)
    """Spread of ln(time) of the paths alone, at a group shape that was not measured."""
    doubling_log_sigma: float = Field(default=0.0, ge=0)
    """Added (in quadrature) per doubling of ranks or nodes away from the nearest measured group."""
    residual: NetworkResidual | None = None
    n_samples: int = 0
    source: str
    transferred_from: str | None = None
    extra_log_sigma: float = Field(default=0.0, ge=0)
    """Added in quadrature for what transfer from another device or link leaves unknown."""


class NetworkModel(_Frozen):
    """A node's links, the links between nodes, and the fitted collectives of each."""

    name: str
    ranks_per_node: int = Field(ge=1)
    intra: tuple[Link, ...]
    """Ways of joining the ranks of a node; the first is the default."""
    inter: tuple[Link, ...] = ()
    """Ways of joining nodes; the first is the default."""
    fits: tuple[CollectiveFit, ...] = ()
    concurrent_slowdown: float = Field(default=1.0, ge=1.0)
    """Factor on a transfer while another one uses the same rank's links, beyond sharing bandwidth."""
    source: str

    @model_validator(mode="after")
    def _names_known(self) -> NetworkModel:
        names = [link.name for link in (*self.intra, *self.inter)]
        if not self.intra:
            raise ValueError(f"network {self.name!r} needs an intra-node link")
        if len(set(names)) != len(names):
            raise ValueError(f"links of network {self.name!r} share a name: {names}")
        for fit in self.fits:
            if fit.link not in names:
                raise ValueError(f"fit of {fit.op} is over link {fit.link!r}; links are {names}")
        return self

    @property
    def nics_per_node(self) -> int:
        """Interfaces per node of the default inter-node link; 1 where there is none."""
        return self.inter[0].nics_per_node if self.inter else 1

    def variants(self) -> tuple[str, ...]:
        """Names that `links` takes: every link and every intra+inter pair."""
        pairs = tuple(f"{a.name}+{b.name}" for a in self.intra for b in self.inter)
        return (*(link.name for link in (*self.intra, *self.inter)), *pairs)

    def links(self, variant: str | None = None) -> tuple[Link, Link | None]:
        """(intra, inter) link of a variant; inter is None where the network has no inter-node link."""
        intra, inter = self.intra[0], self.inter[0] if self.inter else None
        for part in variant.split("+") if variant else ():
            if found := next((link for link in self.intra if link.name == part), None):
                intra = found
            elif found := next((link for link in self.inter if link.name == part), None):
                inter = found
            else:
                raise UsageError(
                    f"unknown link {part!r} in network variant {variant!r} of {self.name!r}; "
                    f"there are: {', '.join(self.variants())}"
                )
        return intra, inter
