"""The vocabulary between graph and machine: cost kinds of operators and collectives, and their sizes.

The tracer writes these names into `Operator.kind/variant/dims`, calibration files its samples under
them, and the profile's fitted forms are keyed by them.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["COLLECTIVE_KINDS", "OPERATOR_KINDS", "CollectiveGroup", "OperatorKind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorKind:
    """A family of operators priced by one form. `dims` are its integer sizes; `variants` its sub-cases."""

    name: str
    dims: tuple[str, ...]
    variants: tuple[str, ...]
    doc: str


OPERATOR_KINDS: dict[str, OperatorKind] = {
    kind.name: kind
    for kind in (
        OperatorKind(
            name="gemm",
            dims=("m", "n", "k"),
            variants=("nt", "nn", "tn"),
            doc="C[m,n] = A[m,k] B[k,n]; nt: forward of linear (weight stored n x k), nn: data gradient, "
            "tn: weight gradient",
        ),
        OperatorKind(
            name="bmm",
            dims=("batch", "m", "n", "k"),
            variants=("nn", "nt", "tn"),
            doc="C[b,m,n] = A[b,m,k] B[b,k,n]",
        ),
        OperatorKind(
            name="grouped_gemm",
            dims=("groups", "m", "n", "k"),
            variants=("nt", "nn", "tn"),
            doc="one GEMM per expert; m is the total of rows over the groups",
        ),
        OperatorKind(
            name="conv",
            dims=(
                "batch",
                "c_in",
                "c_out",
                "h",
                "w",
                "kh",
                "kw",
                "stride",
                "padding",
                "groups",
                "transposed",
            ),
            variants=("fwd", "dgrad", "wgrad"),
            doc="NCHW; h, w of the input; 1-D has h = kh = 1; 3-D folds depth into h",
        ),
        OperatorKind(
            name="attention",
            dims=(
                "batch",
                "q_len",
                "kv_len",
                "heads",
                "kv_heads",
                "qk_dim",
                "v_dim",
                "window",
                "causal",
            ),
            variants=("fwd", "bwd", "prefill", "decode", "mla_prefill", "mla_decode"),
            doc="one fused (flash) attention call; fwd/bwd: training; window 0 = full; causal 0/1",
        ),
        OperatorKind(
            name="elementwise",
            dims=("rows", "cols", "bytes"),
            variants=(
                "add",
                "mul",
                "div",
                "pow",
                "relu",
                "gelu",
                "tanh",
                "silu_and_mul",
                "rope",
                "copy",
                "other",
            ),
            doc="rows x cols output elements; bytes = least traffic (read + written)",
        ),
        OperatorKind(
            name="norm",
            dims=("rows", "cols", "bytes"),
            variants=("layernorm", "rmsnorm", "batchnorm", "groupnorm", "bwd"),
            doc="normalisation over cols",
        ),
        OperatorKind(
            name="softmax", dims=("rows", "cols", "bytes"), variants=("fwd", "bwd"), doc="softmax over cols"
        ),
        OperatorKind(
            name="reduction",
            dims=("rows", "cols", "bytes"),
            variants=("sum", "pool", "loss", "other"),
            doc="rows results out of rows x cols inputs",
        ),
        OperatorKind(
            name="embedding",
            dims=("rows", "cols", "bytes"),
            variants=("fwd", "bwd"),
            doc="gather of rows of width cols; bwd: scatter-add into the table",
        ),
        OperatorKind(
            name="quantise",
            dims=("rows", "cols", "bytes"),
            variants=("static",),
            doc="to fp8 with given scale",
        ),
        OperatorKind(
            name="optimizer",
            dims=("rows", "cols", "bytes"),
            variants=("sgd", "adam", "adafactor", "muon"),
            doc="one step; rows = parameter tensors, cols = mean elements per tensor",
        ),
        OperatorKind(
            name="moe",
            dims=("num_tokens", "hidden", "inter", "topk", "num_experts", "moe_tp", "moe_ep"),
            variants=("balanced", "power_law_1.01", "power_law_1.2"),
            doc="routed-expert layer of the busiest rank, no communication",
        ),
        OperatorKind(name="host", dims=(), variants=(), doc="runs no kernel: views, shape bookkeeping"),
        OperatorKind(
            name="unmodelled", dims=("bytes",), variants=(), doc="no rule known; priced by its bytes"
        ),
    )
}

COLLECTIVE_KINDS = (
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "all_to_all",
    "broadcast",
    "reduce",
    "p2p",
    "p2p_bidirectional",
)
"""Names of the profile. Tables may say alltoall or sendrecv; reading maps them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveGroup:
    """How a group of ranks lies on the machine.

    `n_nodes` nodes with `n_ranks / n_nodes` ranks each; `nic_sharing` groups of this kind that use the
    same node's network interfaces at the same time (a tensor-parallel group inside a node leaves
    nic_sharing = 1 of data-parallel groups per GPU, that is gpus_per_node / ranks_per_node of them).
    """

    n_ranks: int
    n_nodes: int = 1
    nic_sharing: int = 1

    def __post_init__(self) -> None:
        if self.n_ranks < 1 or self.n_nodes < 1 or self.n_ranks % self.n_nodes:
            raise ValueError(
                f"n_ranks({self.n_ranks}) must be a positive multiple of n_nodes({self.n_nodes})"
            )

    @property
    def ranks_per_node(self) -> int:
        """Ranks of the group on each node."""
        return self.n_ranks // self.n_nodes
