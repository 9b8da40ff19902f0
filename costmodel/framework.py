"""FrameworkProfile: what a training framework does, apart from the machine and the model.

Kernels fused or not, host time per operator relative to plain PyTorch, gradient and optimizer types,
what overlaps. One JSON file per framework in `costmodel/data/frameworks/`, every number with its source.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from costmodel.errors import InputFileError, UsageError
from costmodel.schedules import SCHEDULES

__all__ = ["HOST_TIMES", "FrameworkProfile", "framework_names", "load_framework"]

_FOLDER = Path(__file__).parent / "data" / "frameworks"

HOST_TIMES = (
    "host_operator_s",
    "host_collective_s",
    "host_late_s",
    "segment_s",
    "step_overhead_s",
    "forward_overhead_s",
)
"""Fields of a profile that a faster host shortens."""


class FrameworkProfile(BaseModel):
    """Constants of one framework (and version range). Bytes are per parameter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    source: str
    executor: Literal["torch", "graph"] = "torch"
    """graph: a runtime of its own in place of torch's dispatcher, with its own fusions on a CPU too."""
    fusion: Literal["eager", "compiled", "fused"] = "eager"
    half_products: Literal["same", "fp8", "fp8_block", "nvfp4", "int8_wo", "int4_wo"] = "same"
    """Type in which products of half-precision operands with weights are computed."""
    expert_products: Literal["as the others", "same", "fp8", "fp8_block", "nvfp4", "int8_wo", "int4_wo"] = (
        "as the others"
    )
    """The same for routed experts."""
    cache_dtype: Literal["same", "fp8"] = "same"
    """Type of keys and values kept in inference; same: the activations'."""
    cache_concatenated: bool = False
    """Each new token's keys and values are joined to the kept ones in new memory; else written in place."""
    memory_bound_efficiency: float = Field(1.0, gt=0)
    """Bandwidth of the framework's element-wise, softmax and normalisation kernels over that of torch's."""
    memory_bound_elements_per_cycle: float = Field(0.0, ge=0)
    """Values that one multiprocessor takes through such kernels in a cycle, whatever their type; their time
    comes on top of the bandwidth's. 0: no limit."""
    conv_layout_passes: float = Field(0.0, ge=0)
    """Times that the operands of a convolution on matrix units are read and written once more, at the
    memory's bandwidth, to turn channels first into the order such kernels take; 0: they have that order."""
    attention: Literal["unfused", "flash", "eager"] = "flash"
    """eager: as transformers writes it out; see `graph.tracing.ATTENTION`."""
    compute_dtype: str = "fp32"
    autocast: bool = False
    """Where `compute_dtype` is half precision: parameters and inputs stay fp32, and torch.autocast casts what
    its operators read, as on the device (`graph.autocast`); else the whole model is in `compute_dtype`."""
    fp32_products: Literal["fp32", "tf32"] = "fp32"
    """Type in which products of fp32 operands are computed on GPUs that have both."""
    fp32_convolutions: Literal["as products", "tf32"] = "as products"
    """The same of convolutions, where it is not that of products."""
    parameter_bytes: float = Field(4.0, gt=0)
    gradient_bytes: float = Field(4.0, ge=0)
    optimizer_state_bytes: float = Field(8.0, ge=0)
    """Moments and, under mixed precision, the fp32 master copy."""
    gradient_comm_bytes: float = Field(4.0, gt=0)
    parameter_comm_bytes: float = Field(4.0, gt=0)
    optimizer: str = "adam"
    bucket_bytes: int = Field(25 * 2**20, gt=0)
    first_bucket_bytes: int = Field(2**20, gt=0)
    bucket_bytes_per_rank: int = Field(0, ge=0)
    """Buckets are at least this times the data-parallel degree: rings of many ranks need long messages."""
    gradient_as_bucket_view: bool = False
    """Gradients live in the reducer's buckets; else they are copied in and out."""
    gradients_persist: bool = False
    """Gradients keep their memory over steps (flat buffers); else they appear during backward."""
    updates_unused: bool = False
    """Trained parameters that no gradient reaches have one of zeros, and an update (flat buffers); else they
    have neither."""
    fused_optimizer: bool = False
    """The update runs in one kernel without temporaries (apex)."""
    update_kernels: int = Field(0, ge=0)
    """Kernels for each parameter tensor of an update written out operator by operator; 0: all tensors at
    once, in a fused kernel or torch's foreach ones."""
    update_passes: int = Field(0, ge=0)
    """Times that such an update reads or writes fp32 values of a parameter's size."""
    update_kernel_s: float = Field(0.0, ge=0)
    """Host time for each kernel of such an update (no autograd, no modules)."""
    update_copy_bytes: float = Field(0.0, ge=0)
    """Copies of gradients made for the update (flattened, in fp32), which are freed after it."""
    update_fragment_bytes: float = Field(0.0, ge=0)
    """Blocks of single parameters that the allocator keeps because the flat tensors of the update do not fit
    in them: gradients before they are flattened, their copies for the norm; 0: the update is not flat."""
    fragment_bytes: int = Field(0, ge=0)
    """What else the allocator's pool keeps in blocks that nothing uses."""
    fragment_fraction: float = Field(0.0, ge=0)
    """The same over activations and temporaries at their peak."""
    loss_copy_bytes: float = Field(0.0, ge=0)
    """Bytes for each logit that the loss holds beside what torch's own does."""
    keeps_stage_outputs: bool = False
    """A pipeline stage holds what it sent on until the micro-batch's backward; else it is freed once sent."""
    attention_efficiency: float = Field(1.0, gt=0)
    """Speed of the framework's attention kernels over that of the profile's measured ones."""
    decode_elements_per_s: float = Field(0.0, ge=0)
    """Elements of keys and values that one multiprocessor takes in a second, in kernels that decode one query
    head at a time: heads that share keys take them again; 0: decode as the profile measured it."""
    decode_memory_efficiency: float = Field(1.0, gt=0, le=1)
    """Share of the memory bandwidth that such kernels draw where that limits them."""
    softmax_batch_multiple: int = Field(1, ge=1)
    """The fused softmax of attention that is written out runs where samples x heads of a rank divide by this;
    elsewhere its steps are kernels of their own (`graph.softmax`)."""
    softmax_max_keys: int = Field(0, ge=0)
    """The longest row that it takes; 0: any."""
    shard_interfaces: int = Field(0, ge=0)
    """Interfaces of a node that ZeRO-3's gathers and reductions between nodes keep busy; 0: all."""
    overlap_dp: bool = True
    overlap_gather: bool = False
    """Under ZeRO-1 and 2: updated parameters are gathered beside the next step's first forward, which waits
    for each unit's; else after the update."""
    overlap_reduce: bool = True
    """Under ZeRO-3: whether a unit's gradients are reduced beside the next unit's backward; gathers are."""
    share_network: bool = False
    """Gathers and reductions that run at one time share a rank's interface: they are of one process group,
    whose collectives torch runs one after another."""
    overlap_ep: bool = False
    """Tokens of one micro-batch travel to experts while another one is computed."""
    overlap_tp: bool = False
    """Tensor-parallel collectives run beside the layer's products, one slice for each rank: the transfer of
    all slices but one is hidden where the products last that long (Transformer Engine's user buffers)."""
    expert_bias_bytes: float = Field(0.0, ge=0)
    """Bytes that adding experts' biases moves, forward and backward, for each element of their products: 0
    inside the products, more where the framework slices, adds and joins expert by expert."""
    routed_rows: Literal["as_traced", "half"] = "as_traced"
    """Type in which tokens are permuted, weighed and summed around experts where the traced module does it in
    fp32: half for frameworks that weigh them inside the experts' activation, and take the router's product on
    tensor cores."""
    dispatch: Literal["per_expert", "per_node"] = "per_expert"
    """Whether a token crosses to another node once for each of its experts there, or once for the node,
    whose ranks pass it on (DeepSeek-V3's dispatch, arXiv 2412.19437, section 3.2.2); inside a node, once for
    each rank that holds experts of it (is_token_in_rank of DeepEP's kernels)."""
    dispatch_link_fraction: float = Field(0.0, ge=0, le=1)
    """Of what the links between nodes carry: what its own kernels reach among three nodes and more (between
    two they are as fast as the profile's all-to-all), or an all-to-all that the framework tunes. 0: the
    profile's all-to-all."""
    dispatch_bytes_per_s: float = Field(0.0, ge=0)
    """Most bytes of long rows that its kernels move from one rank; 0: what the links carry."""
    dispatch_row_bytes: float = Field(0.0, ge=0)
    """Length of a row that they move at half that rate."""
    dispatch_multiprocessors: int = Field(0, ge=0)
    """Multiprocessors that its kernels keep from what runs beside them; 0: as collectives do, by what they
    move."""
    overlap_p2p: bool = False
    """Whether pipeline transfers run beside the receiver's computation."""
    overlap_p2p_listed: bool = False
    """The same for schedules that run from a list of actions with receives in it, which are posted as soon as
    the list allows: those with several stages per rank or with weight gradients apart."""
    scatter_p2p: bool = False
    """Ranks of a tensor-parallel group send a slice each to the next stage, which gathers them
    (arXiv 2104.04473, section 4.1)."""
    stages: Literal["balanced", "even", "late"] = "balanced"
    """Pipeline stages of least bottleneck, or of as many repeated blocks each (embedding and head extra);
    where they do not divide, even balances them and late gives the last stages one more."""
    host_factor: float = Field(1.0, ge=0)
    """Host time per operator relative to the profile's plain eager dispatch."""
    host_operator_s: float = Field(0.0, ge=0)
    """Host time per kernel where the hardware profile has no measured dispatch."""
    segment_s: float = Field(0.0, ge=0)
    """Host time of each segment that torch's allocator takes from the driver for what a forward keeps, where
    its pool is emptied before (torch.cuda.empty_cache); 0: the pool has them from the step before."""
    wiped_bytes_per_s: float = Field(0.0, ge=0)
    """Rate at which the driver wipes what such a pool gave back before it gives it out again; 0: hidden."""
    host_overlap_power: float = Field(0.0, ge=0)
    """Power p of (host^p + device^p)^(1/p), the time of a block in which now the device waits for the host,
    now works its queue off; 0: the longer one of both, as where a long queue evens them out."""
    launch_blocking: bool = False
    """The host waits for every kernel before it dispatches the next one (CUDA_LAUNCH_BLOCKING=1)."""
    host_collective_s: float = Field(0.0, ge=0)
    """Host time of issuing one collective inside a layer."""
    host_late_s: float = Field(0.0, ge=0)
    """Mean lateness of a host where a collective inside a layer waits for the last one of its ranks."""
    step_overhead_s: float = Field(0.0, ge=0)
    """Host time of a training step beside its operators, on top of the hardware profile's `step_s`."""
    input_samples_per_s: float = Field(0.0, ge=0)
    """Samples that one rank's input pipeline delivers (decoded images, say); 0: as many as it takes."""
    forward_overhead_s: float = Field(0.0, ge=0)
    """Host time of a forward pass in inference beside its kernels (sampling, bookkeeping)."""
    request_overhead_s: float = Field(0.0, ge=0)
    """The same for every running request of the pass."""
    arrival_overhead_s: float = Field(0.0, ge=0)
    """From the end of an answer at its client until a server's scheduler knows of the next request, beside
    what the front end does: round trips, connections, queues between processes."""
    frontend_request_s: float = Field(0.0, ge=0)
    """What a server's front end, one process, spends on each request."""
    frontend_prompt_token_s: float = Field(0.0, ge=0)
    """The same for every token of its prompt."""
    frontend_token_s: float = Field(0.0, ge=0)
    """The same for every token of an answer."""
    passes_ahead: int = Field(0, ge=0)
    """Passes that a server's scheduler has settled while one runs: new requests come after them."""
    reserves_answers: bool = False
    """A server takes a prompt in where its whole answer finds room, and never puts a request back."""
    prompt_operator_s: float = Field(0.0, ge=0)
    """Host time of one traced operator in a server's pass that holds prompts and is no captured graph."""
    captured_tokens: int = Field(0, ge=0)
    """Tokens up to which passes with prompts are captured graphs, whose launch costs no host time."""
    uncaptured_factor: float = Field(1.0, ge=1)
    """Times what its kernels do that a pass with prompts takes beyond those tokens."""
    pass_tokens: int = Field(8192, ge=1)
    """Tokens of a forward pass of a server; longer prompts come in chunks, short ones together."""
    pipeline_tokens: int = Field(0, ge=0)
    """Most tokens of the micro-batches that the framework cuts an inference pipeline's batch into; 0: it cuts
    none."""
    mixes_prompts: bool = True
    """A server's passes take prompts and running requests together; else prompts have passes of their own."""
    chooses_keys: bool = False
    """Attention runs over the keys that the model chooses alone; else over all of them under a mask, as the
    model's own code does."""
    merges_projections: bool | Literal["attention"] = False
    """In inference products of one input run as one, and a server's routed experts as one call; attention:
    those that make queries, keys and values alone."""
    repeats_key_heads: bool = False
    """In inference, with more tensor-parallel ranks than key heads, ranks that share a head each have its
    projections; else those are split, and what they make is gathered."""
    vector_products: tuple[str, ...] = ()
    """Types of products with weights that, for a single row of activations, the compiler writes as a
    reduction over the weights; others are the library's (and the tables')."""
    device_memory_fraction: float = Field(1.0, gt=0, le=1)
    """Share of a device that a server takes, for parameters, passes, keys and values together."""
    free_memory_fraction: float = Field(1.0, gt=0, le=1)
    """Share of what parameters and passes leave free that a server gives keys and values."""
    input_quantisation_s: dict[str, float] = Field(default_factory=dict)
    """Type of products -> seconds that their measurements with these `kernels` spend on quantising the input,
    which a server's normalisations and activations do on the way."""
    input_quantisation_bytes: dict[str, float] = Field(default_factory=dict)
    """The same: bytes moved for each element of the input, at the datasheet's bandwidth."""
    product_flop_per_s: dict[str, float] = Field(default_factory=dict)
    """Kind and type of products ("gemm/fp8_block", "moe/int4_wo") -> FLOP/s that the kernels which a server
    was told to take never exceed, where those are slower than the ones measured."""
    parallel_experts_tokens: int = Field(0, ge=0)
    """Tokens up to which a server's pass runs shared experts on a stream beside the routed ones."""
    kernels: tuple[str, ...] = ()
    """Libraries whose kernels run, as profiles name them (`vllm`): the first one that was measured; empty:
    the mean over those measured."""
    expert_kernels: tuple[str, ...] = ()
    """The same for routed experts, before `kernels`."""
    all_reduce: tuple[str, ...] = ()
    """Implementations of all-reduce that are taken inside a node where they are faster than NCCL's."""
    vocab_multiple: int = Field(1, ge=1)
    """The vocabulary is padded to a multiple of this (times tp)."""
    workspace_bytes: int = Field(0, ge=0)
    """What libraries keep allocated through torch's allocator (cuBLAS workspaces)."""
    memory_overhead_bytes: int = Field(0, ge=0)
    """What the device holds beside torch's allocator (context, communication buffers, fragments)."""
    ranks_overhead_bytes: int = Field(0, ge=0)
    """The same on top, in inference, of a rank that others share a layer with (buffers of collectives)."""
    sampled_requests: dict[int, int] = Field(default_factory=dict)
    """Bytes of a device -> requests whose tokens a server on one of at least so many keeps room to sample."""
    sampled_logit_bytes: float = Field(0.0, ge=0)
    """Bytes that sampling holds at once for each logit of those requests."""
    residual_log_sigma: float = Field(0.0, ge=0)
    """Spread of measured over predicted step time that the other terms do not explain."""
    first_token_log_sigma: float | None = Field(None, ge=0)
    """The same of a server's mean time to first token under clients; None: as `residual_log_sigma`."""
    per_token_log_sigma: float | None = Field(None, ge=0)
    """The same of its mean time per token under clients; None: as `residual_log_sigma`."""
    notes: dict[str, str] = Field(default_factory=dict)
    """Field name -> where its value comes from."""

    @property
    def casts_to(self) -> str:
        """The half-precision type that autocast casts to, "" where it does not run."""
        return self.compute_dtype if self.autocast and self.compute_dtype in ("fp16", "bf16") else ""

    def overlaps_p2p(self, schedule: str, vpp: int) -> bool:
        """Whether transfers run beside the receiver's computation under a named schedule."""
        how = SCHEDULES[schedule]
        if how.overlap_p2p is not None:
            return how.overlap_p2p
        return self.overlap_p2p or self.lists_receives(schedule, vpp)

    def lists_receives(self, schedule: str, vpp: int) -> bool:
        """Whether a named schedule runs from a list of actions with receives in it."""
        return self.overlap_p2p_listed and (vpp > 1 or SCHEDULES[schedule].splits_backward)


def framework_names() -> list[str]:
    """Names of the shipped framework profiles."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


@lru_cache(maxsize=64)
def load_framework(name: str) -> FrameworkProfile:
    """A shipped framework profile, or one from a path.

    Raises UsageError for an unknown name, InputFileError for a file that does not validate.
    """
    path = Path(name) if name.endswith(".json") else _FOLDER / f"{name}.json"
    if not path.is_file():
        raise UsageError(f"unknown framework {name!r}; there are: {', '.join(framework_names())}")
    try:
        return FrameworkProfile.model_validate(json.loads(path.read_text()))
    except (ValidationError, json.JSONDecodeError) as error:
        raise InputFileError(f"framework profile {path}: {error}") from error
