"""Traces against independent oracles: FlopCounterMode, parameter counts, saved-tensor hooks, full traces."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from costmodel.errors import TraceError
from costmodel.graph import trace, trace_module
from costmodel.graph.loss import default_loss
from costmodel.graph.model_graph import Phase
from costmodel.graph.quiet import quiet_fake_tensors
from costmodel.graph.tracing import fake_mode
from costmodel.models import resolve, resolve_config, shipped_names
from tests.costmodel.graph.oracles import real_step

# Reduced sizes at which the real module runs on a CPU in a moment. Depths keep repeated blocks repeated.
SMALL: dict[str, dict[str, object]] = {
    "gpt2": {"n_layer": 4, "n_embd": 64, "n_head": 4, "vocab_size": 128, "n_positions": 32},
    "gpt3-175b": {"n_layer": 5, "n_embd": 96, "n_head": 4, "vocab_size": 128, "n_positions": 32},
    "bert-large": {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    },
    "t5-small": {"num_layers": 4, "num_decoder_layers": 4, "vocab_size": 128},
    "t5-large": {"num_layers": 3, "num_decoder_layers": 3, "vocab_size": 128, "d_ff": 256},
    "resnet-50": {"image_size": 64},
    "vit-large": {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    },
    "dit-xl": {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 16},
    "stable-diffusion-unet": {
        "block_out_channels": [32, 64, 64, 64],
        "sample_size": 16,
        "cross_attention_dim": 64,
    },
    "mlp-mnist": {},
    "mixtral-8x7b": {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
    },
    "deepseek-v3": {
        "num_hidden_layers": 5,
        "hidden_size": 64,
        "intermediate_size": 96,
        "moe_intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 16,
        "n_group": 4,
        "topk_group": 2,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "vocab_size": 128,
        "num_experts_per_tok": 2,
    },
}
LLAMA = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
}
EXPERTS = ("mixtral-8x7b", "deepseek-v3")
NAMES = shipped_names()


def _source(name: str):  # type: ignore[no-untyped-def]
    return resolve(name, micro_batch_size=2, seq_len=16, overrides=SMALL.get(name, LLAMA))


@pytest.mark.parametrize("name", NAMES)
def test_flop_parameters_and_saved_bytes_equal_the_real_module(name: str) -> None:
    source = _source(name)
    graph = trace(source)
    if name in EXPERTS:
        # FlopCounterMode does not see into the library's grouped product on a CPU: count its loop instead
        source = resolve(
            name,
            micro_batch_size=2,
            seq_len=16,
            overrides={**SMALL[name], "experts_implementation": "eager"},
        )
    built = source.build()
    module = built.module.train()
    counted, saved_bytes = real_step(module, built.args, built.kwargs)
    assert graph.flop(Phase.FORWARD) + graph.flop(Phase.BACKWARD) == pytest.approx(counted, rel=0.005)
    assert graph.n_parameters == sum(p.numel() for p in module.parameters())
    if name not in EXPERTS:
        assert graph.saved_activation_bytes == pytest.approx(saved_bytes, rel=0.02)
    assert graph.unmodelled_fraction < 0.01


@pytest.mark.parametrize("name", ["gpt2", "llama-2-7b", "t5-small", "resnet-50", "stable-diffusion-unet"])
def test_reduction_equals_a_full_trace(name: str) -> None:
    source = _source(name)
    short, full = trace(source), trace(source, reduce=False)
    for phase in (Phase.FORWARD, Phase.BACKWARD):
        assert short.flop(phase) == full.flop(phase)
    assert short.n_parameters == full.n_parameters
    assert short.saved_activation_bytes == full.saved_activation_bytes
    # the first and last of a run differ by an addition or two (gradients that accumulate along the run)
    assert short.n_operators == pytest.approx(full.n_operators, rel=0.005)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_layer": 4, "n_embd": 32, "n_head": 2, "vocab_size": 64},
        {
            "model_type": "bert",
            "num_hidden_layers": 1,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 64,
        },
        {
            "model_type": "llama",
            "num_hidden_layers": 3,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "vocab_size": 64,
            "tie_word_embeddings": True,
        },
    ],
    ids=lambda config: config["model_type"],
)
def test_a_model_made_without_values_is_traced_as_one_with_them(config: dict[str, object]) -> None:
    source = resolve_config(config, name="tiny", micro_batch_size=2, seq_len=8)
    built = source.build()
    parameters = dict(built.module.named_parameters())
    assert not any(p.is_meta for p in parameters.values())
    real = trace_module(built.module, built.args, built.kwargs, attention="flash")
    assert dict(built.module.named_parameters()).keys() == parameters.keys()
    assert all(p is parameters[name] for name, p in built.module.named_parameters())
    assert trace(source, attention="flash").segments == real.segments


def test_a_module_somebody_wrote_this_morning() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(50, 24)
            self.cell = nn.GRUCell(24, 24)
            self.shared = nn.Linear(24, 24)
            self.unused = nn.Linear(3, 3)
            self.frozen = nn.Linear(24, 24)
            self.frozen.requires_grad_(False)

        def forward(self, ids: torch.Tensor, *, scale: float = 1.0) -> dict[str, torch.Tensor]:
            x = self.table(ids)
            h = x[:, 0]
            for i in range(x.shape[1]):
                h = self.cell(x[:, i], h)
                h = h + self.shared(self.frozen(self.shared(h)).relu_()) * scale
            return {"h": h, "x": x}

    module = Odd()
    ids = torch.randint(0, 50, (3, 5))
    graph = trace_module(module, (ids,))
    counter = FlopCounterMode(display=False)
    with counter:
        default_loss(module(ids)).backward()
    assert graph.flop(Phase.FORWARD) + graph.flop(Phase.BACKWARD) == counter.get_total_flops()
    assert graph.n_parameters == sum(p.numel() for p in module.parameters())
    assert not any(getattr(p, "fake_mode", None) for p in pytree.tree_leaves(list(module.parameters())))


def test_untraceable_model_names_the_line() -> None:
    class DataDependent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum().item() > 0:
                return x
            return -x

    with pytest.raises(TraceError, match=r"cannot be traced.*test_tracing\.py:\d+.*reads a value out of"):
        trace_module(DataDependent(), (torch.randn(3, requires_grad=True),))


def test_wrong_shapes_are_one_message_without_torchs_stack(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TraceError, match="same reduction dim"):
        trace_module(nn.Linear(8, 8), (torch.randn(4, 9),))
    assert not caplog.records


def test_an_input_of_fewer_dimensions_asks_for_other_inputs() -> None:
    """Not for dense tensors: torch names its sparse permutation for any tensor of the wrong dimensions."""

    class Frames(nn.Module):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return frames.permute(0, 2, 1, 3, 4)

    with pytest.raises(TraceError, match=r"desired ordering.*other inputs can be given .*module:callable"):
        trace_module(Frames(), (torch.randn(1, 3, 8, 8),), training=False)


def test_nothing_to_train_says_so() -> None:
    module = nn.Linear(8, 8).requires_grad_(False)
    with pytest.raises(TraceError, match="nothing that it computes is trained"):
        trace_module(module, (torch.randn(4, 8),))
    assert trace_module(module, (torch.randn(4, 8),), training=False).n_parameters == 72


def test_a_transformers_mask_made_in_the_forward_is_the_causal_one() -> None:
    class Translator(nn.Module):
        def __init__(self, told: bool | None) -> None:
            super().__init__()
            self.core = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True)
            self.told = told

        def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], device=target.device)
            out: torch.Tensor = self.core(source, target, tgt_mask=mask, tgt_is_causal=self.told)
            return out

    inputs = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    found, told = (trace_module(Translator(told), inputs) for told in (None, True))
    # asking whether the mask is causal would be operators of its own, run on the host's word alone
    assert found.flop(Phase.FORWARD) == told.flop(Phase.FORWARD)
    assert found.saved_activation_bytes == told.saved_activation_bytes


def test_backward_operators_know_their_forward() -> None:
    graph = trace(_source("gpt2"))
    for segment in graph.segments:
        known = {op.index for op in segment.operators}
        backward = segment.phase(Phase.BACKWARD)
        linked = [op for op in backward if op.forward_index is not None]
        assert all(op.forward_index is not None for op in backward if op.flop)
        assert all(op.forward_index in known for op in linked)


def test_attention_with_sinks_trains_in_one_kernel_where_frameworks_have_it() -> None:
    config = {
        "model_type": "gpt_oss",
        "architectures": ["GptOssForCausalLM"],
        "num_hidden_layers": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "hidden_size": 64,
        "intermediate_size": 64,
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
        "sliding_window": 16,
    }
    source = resolve_config(config, name="sinks", micro_batch_size=2, seq_len=64)
    fused = [
        op
        for segment in trace(source, attention="flash").segments
        for op in segment.operators
        if op.kind == "attention"
    ]
    # one layer slides over 16 keys, the next sees all 64; forward and backward each
    assert sorted((op.dims["kv_len"], op.phase.value) for op in fused) == [
        (16, "backward"), (16, "forward"), (64, "backward"), (64, "forward"),
    ]  # fmt: skip
    written_out = trace(source, attention="unfused")
    assert not any(op.kind == "attention" for s in written_out.segments for op in s.operators)


@pytest.mark.parametrize("tied", [False, True])
def test_layers_cloned_while_fake_are_views_of_their_weights(tied: bool) -> None:
    def clones() -> nn.Module:
        layer = nn.Linear(8, 8)
        second = copy.deepcopy(layer)
        if tied:
            second.weight = layer.weight
        return nn.Sequential(layer, nn.Tanh(), second)

    real = trace_module(clones(), (torch.randn(4, 8),))
    with fake_mode(), quiet_fake_tensors():
        module = clones()
        fake = trace_module(module, (torch.randn(4, 8),))
    assert fake.unmodelled_fraction == real.unmodelled_fraction == 0.0
    assert fake.saved_activation_bytes == real.saved_activation_bytes
    assert fake.n_parameters == real.n_parameters == sum(p.numel() for p in module.parameters())


def test_written_out_by_the_library_scores_are_scaled_and_masked_in_kernels_of_their_own() -> None:
    overrides = SMALL["bert-large"]
    source = resolve("bert-large", micro_batch_size=2, seq_len=32, overrides=overrides)
    scores = 2 * 4 * 32 * 32  # samples, heads, queries, keys

    def passes(attention: str) -> list[str]:
        graph = trace(source, attention=attention)
        block = next(s for s in graph.segments if s.is_block)
        return [
            op.target.split(".")[1]
            for op in block.phase(Phase.FORWARD)
            if op.kind in ("elementwise", "softmax") and op.dims["rows"] * op.dims["cols"] == scores
        ]

    eager = passes("eager")
    assert eager[: eager.index("_softmax")] == ["mul", "add"]
    unfused = passes("unfused")
    assert unfused[0] == "_safe_softmax"


def test_attention_of_a_library_is_put_back_after_the_trace() -> None:
    built = resolve("bert-large", micro_batch_size=1, seq_len=16, overrides=SMALL["bert-large"]).build(
        device="cpu"
    )
    before = built.module.config._attn_implementation
    trace_module(built.module, built.args, built.kwargs, attention="eager")
    assert built.module.config._attn_implementation == before


def test_sparse_gradients_are_refused_in_training_only() -> None:
    table = nn.EmbeddingBag(100, 8, mode="sum", sparse=True)
    inputs = (torch.randint(0, 100, (4, 3)),)
    with pytest.raises(TraceError, match="sparse=False"):
        trace_module(table, inputs)
    assert trace_module(table, inputs, training=False).n_parameters == 800


@pytest.mark.parametrize("where", ["buffer", "input"])
def test_sparse_tensors_are_refused_by_name(where: str) -> None:
    class Neighbours(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("adjacency", torch.eye(3).to_sparse())

        def forward(self, x: torch.Tensor, adjacency: torch.Tensor | None = None) -> torch.Tensor:
            return torch.sparse.mm(self.adjacency if adjacency is None else adjacency, self.layer(x))

    module, args = Neighbours(), (torch.randn(3, 4), torch.eye(3).to_sparse())
    if where == "input":
        module.register_buffer("adjacency", None)
    name = {"buffer": "adjacency", "input": "input 1"}[where]
    with pytest.raises(TraceError, match=f"{name} is no dense tensor .torch.sparse_coo"):
        trace_module(module, args)


def test_an_error_says_where_examples_were_cut() -> None:
    with pytest.raises(TraceError, match=r"4 example samples were made 2 along dimension 0.*ask for mbs4"):
        trace(resolve(f"{__name__}:of_four", micro_batch_size=2))
    assert trace(resolve(f"{__name__}:of_four")).n_parameters == 12


def of_four() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """A module made for four samples."""

    class OfFour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.each

    return OfFour(), (torch.randn(4, 3),)
