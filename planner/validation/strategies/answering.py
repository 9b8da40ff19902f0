"""Answers of a language model with kept keys and values: a prompt's forward pass, then token after token.

The module is any whose forward takes `input_ids` and `past_key_values` (transformers' causal models). Each
token is the likeliest one; every rank of a tensor-parallel group takes the same, from whole logits.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from costmodel.errors import PlanError, UsageError
from planner.validation.model_source import load_model, split_batch

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed.device_mesh import DeviceMesh

    from costmodel.plan import Plan
    from planner.validation.run_spec import RunSpec

__all__ = ["Answerer", "build_answerer", "check_answerable"]


@dataclass(slots=True, kw_only=True)
class Answerer:
    """A plan ready to answer on this rank; `prompt` [batch, prompt_len] are its own sequences."""

    spec: RunSpec
    modules: list[nn.Module]
    prompt: torch.Tensor
    first_token_s: float | None = None
    """Of the last answer: seconds until its first token."""
    busy_s: None = None
    optimizer: None = None

    def step(self) -> torch.Tensor:
        """One answer of `output_len` tokens; returns the mean logarithm of their probability."""
        import torch
        from torch.profiler import record_function

        start = time.perf_counter()
        likelihood = torch.zeros((), device=self.prompt.device)
        with torch.no_grad():
            with record_function("foreshard::prefill"):
                tokens, likely, cache = self._forward(self.prompt, None)
            if tokens.is_cuda:
                torch.cuda.synchronize(tokens.device)
            self.first_token_s = time.perf_counter() - start
            likelihood += likely
            with record_function("foreshard::decode"):
                for _ in range(self.spec.output_len - 1):
                    tokens, likely, cache = self._forward(tokens, cache)
                    likelihood += likely
        return likelihood / self.spec.output_len

    def _forward(self, tokens: torch.Tensor, cache: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
        (module,) = self.modules
        output = module(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1]
        if hasattr(logits, "full_tensor"):
            logits = logits.full_tensor()
        best = logits.float().log_softmax(-1).max(-1)
        return best.indices[:, None], best.values.mean(), output.past_key_values


def check_answerable(plan: Plan) -> None:
    """Raise PlanError for what answers no real run gives."""
    if plan.pp > 1 or plan.zero_stage or plan.recompute != "none":
        raise PlanError(
            f"plan {plan}: answers are run with data and tensor parallelism; leave out pipeline stages, "
            "ZeRO and recomputation"
        )
    if plan.num_microbatches > 1:
        raise PlanError(
            f"plan {plan}: an answer takes its batch whole; make mbs({plan.micro_batch_size}) gbs/dp"
        )


def build_answerer(spec: RunSpec, mesh: DeviceMesh | None, device: torch.device, *, replica: int) -> Answerer:
    """This rank's part of a plan that answers. Raises UsageError where the model keeps no keys and values."""
    plan = spec.plan
    check_answerable(plan)
    loaded = load_model(spec.model, batch=plan.global_batch_size, device=device.type, seed=spec.seed)
    module = loaded.module.eval()
    takes = inspect.signature(module.forward).parameters
    missing = [x for x in ("input_ids", "past_key_values", "use_cache", "logits_to_keep") if x not in takes]
    if missing or "input_ids" not in loaded.inputs:
        raise UsageError(
            f"model {spec.model.label!r} cannot answer: its forward takes no "
            f"{', '.join(missing) or 'tokens'}; take a causal language model of transformers"
        )
    own = split_batch(loaded.inputs, batch=loaded.batch, parts=plan.dp, index=replica)
    prompt = own["input_ids"]
    if prompt.shape[1] < spec.prompt_len:
        raise UsageError(
            f"prompt_len({spec.prompt_len}) > {prompt.shape[1]} tokens of the model's example input; take a "
            "shorter prompt"
        )
    if plan.tp > 1:
        from planner.validation.strategies.tensor_styles import apply_styles

        assert mesh is not None
        if not spec.tp_styles:
            raise UsageError(f"plan {plan}: tp({plan.tp}) needs tp_styles (module path -> style)")
        apply_styles(module, mesh["tp"], spec.tp_styles, prefix="")
    return Answerer(spec=spec, modules=[module], prompt=prompt[:, : spec.prompt_len].contiguous())
