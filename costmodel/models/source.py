"""ModelSource: a model that can be built, with the example inputs of its forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["BuiltModel", "ModelSource", "open_dataclasses", "samples_in", "tensors_in"]


def open_dataclasses(values: Any) -> None:
    """Let torch's trees look into the dataclasses among example inputs, as they do into dictionaries."""
    from torch.utils import _pytree as pytree

    for leaf in pytree.tree_leaves(values):
        if is_dataclass(leaf) and not isinstance(leaf, type) and type(leaf) not in pytree.SUPPORTED_NODES:
            pytree.register_dataclass(type(leaf))
            open_dataclasses(leaf)


def samples_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Samples in a call's inputs: size of dimension 0 of the first tensor that has one; 0 without any."""
    return next((t.shape[0] for t in tensors_in(args, kwargs) if t.ndim), 0)


def tensors_in(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among a call's inputs, in order, also inside lists and dictionaries."""
    import torch
    from torch.utils import _pytree as pytree

    leaves = pytree.tree_leaves((tuple(args), dict(kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltModel:
    """A module and one call of it."""

    module: nn.Module
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """What the call leaves out of the model."""
    example_samples: int = 0
    """Samples that a callable's example inputs hold, before they were cut or repeated; 0 for other models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What the model argument resolved to. `builder(batch, seq_len)` makes the module and its inputs on the
    current default device (a FakeTensorMode around it makes them fake)."""

    name: str
    micro_batch_size: int
    """Samples a call; 0: as many as the example inputs hold."""
    seq_len: int
    """0 where the model has no sequence."""
    builder: Callable[[int, int], BuiltModel]
    identity: str = ""
    """Equal for sources that build the same module, whatever they are called; "" where that is not known."""
    max_seq_len: int = 0
    """Positions that the model is made for; 0 where it does not say."""
    encodes_first: bool = False
    """An encoder-decoder: its prompt passes another part than its answer."""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What its configuration says of the part that makes text, in transformers' words; empty without one."""

    def build(self, device: str = "cpu") -> BuiltModel:
        """Build with random weights on `device`. Raises ModelArgumentError."""
        import torch

        if torch.get_default_device() == torch.device(device):  # no mode to pass through at every call
            return self.builder(self.micro_batch_size, self.seq_len)
        with torch.device(device):
            return self.builder(self.micro_batch_size, self.seq_len)

    def with_batch(self, micro_batch_size: int) -> ModelSource:
        """The same model with another batch."""
        return replace(self, micro_batch_size=micro_batch_size)
