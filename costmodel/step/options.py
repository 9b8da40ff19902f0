"""What a step may do beside computing: options of communication, and of offload to the host."""

from __future__ import annotations

from dataclasses import dataclass

from costmodel.errors import PlanError

__all__ = ["Offload", "Options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """What lives on the host or on storage, and how fast it moves (bytes/s, one direction, this rank).

    `host_update_bytes_per_s`: parameter bytes (as the device holds them) that the host's optimizer updates
    per second on this rank's share of the host.
    """

    h2d_bytes_per_s: float
    d2h_bytes_per_s: float
    host_update_bytes_per_s: float = 0.0
    """0: the optimizer stays on the device."""
    device_fraction: float = 0.0
    """Share of the update that the device does (CoTrain); the host does the rest at the same time."""
    delayed_update: bool = False
    """The host updates with the gradients of the step before, beside this step (ZeRO-Offload's one-step
    delayed parameter update, arXiv 2101.06840 section 5.2)."""
    eager_update: bool = False
    """A unit's update starts when its own gradients are on the host, while the backward goes on; without it
    the update starts after the last one, as gradient clipping asks for."""
    stream_weights: bool = False
    """Parameters live on the host and come in unit by unit for forward and backward (ZeRO-Infinity)."""
    gradient_per_parameter_byte: float = 1.0
    storage_bytes_per_s: float = 0.0
    """Above 0: optimizer state lives on storage, read before and written after the host's update."""
    state_per_parameter_byte: float = 6.0
    """Bytes of optimizer state per parameter byte on the device (12 to 2 in mixed-precision Adam)."""

    def __post_init__(self) -> None:
        for name in ("h2d_bytes_per_s", "d2h_bytes_per_s"):
            if getattr(self, name) <= 0:
                raise PlanError(
                    f"offload: {name}={getattr(self, name)}: must be positive; "
                    "take a profile with a host link"
                )
        if not 0.0 <= self.device_fraction <= 1.0:
            raise PlanError(f"offload: device_fraction={self.device_fraction}: must lie between 0 and 1")
        if min(self.host_update_bytes_per_s, self.storage_bytes_per_s) < 0:
            raise PlanError("offload: rates must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the step communicates. `dp`: size of the data-parallel group (1: no data-parallel actions)."""

    zero_stage: int = 0
    dp: int = 1
    overlap_dp: bool = True
    p2p_overlap: bool = False
    receives_listed: bool = False
    """With `p2p_overlap`: receives stand in the list of actions, where torch puts them; else a transfer
    waits for nothing at the receiver."""
    prefetch_forward: int = 1
    prefetch_backward: int = 1
    """Units whose parameters are gathered ahead of the one that computes (ZeRO-3)."""
    overlap_reduce: bool = True
    """Whether a unit's gradient reduction runs beside the next unit's backward."""
    overlap_gather: bool = False
    """Whether parameters updated under ZeRO-1 and 2 are gathered beside the next step's first forward."""
    action_s: float = 0.0
    """Host time of each pipeline action beyond its operators."""
    tied_embedding_s: float = 0.0
    """All-reduce of tied first- and last-stage embeddings before the optimizer."""
    share_network: bool = False
    """Whether data-parallel collectives and pipeline transfers of a rank share its network interface."""
    pulls: bool = False
    """Whether parameters come back from servers after the update, instead of a gather under ZeRO-1 and 2."""
    copies: int = 1
    """Ranks that hold each stage (Chimera: 2); they reduce gradients even where dp is 1."""
    window: int = 0
    """Without a flush: backwards of a stage between two updates; 0 = one update at the end of the step."""
    swaps: bool = False
    """Stages come from the host for each run of forwards or backwards (Harmony)."""
    offload: Offload | None = None

    def __post_init__(self) -> None:
        if self.offload is not None and (self.window or self.copies > 1):
            raise PlanError(
                "offload is modelled for schedules that flush and hold each stage once, not for PipeDream "
                "and Chimera; take 1f1b, zb-h1 or interleaved"
            )
        if self.copies > 1 and self.zero_stage == 3:
            raise PlanError(
                f"zero_stage=3 with {self.copies} copies of each stage (Chimera) is not modelled; "
                "take zero_stage 0 to 2, or another schedule"
            )
        if self.swaps and self.offload is None:
            raise PlanError("this schedule swaps stages to the host: it needs the rates of the host link")

    @property
    def reduces(self) -> bool:
        """Whether gradients are reduced between ranks at all."""
        return self.dp > 1 or self.copies > 1

    @property
    def gathers_late(self) -> bool:
        """Whether updated parameters are gathered by the forward that needs them first."""
        late = self.overlap_gather and self.overlap_dp and self.dp > 1 and self.zero_stage in (1, 2)
        return late and not self.pulls and not self.window and self.offload is None

    @property
    def shard(self) -> int:
        """Ranks that share the optimizer's work."""
        return self.dp if self.zero_stage else 1
