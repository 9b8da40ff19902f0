"""Blocks of a module: what FSDP gathers one by one, recomputation checkpoints, stages are cut between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from costmodel.errors import PlanError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["checkpoint_blocks", "default_blocks", "default_stages", "present"]


def default_blocks(module: nn.Module) -> tuple[str, ...]:
    """Paths of the elements, with parameters, of the outermost module lists (or of a Sequential root)."""
    from torch import nn

    found: list[str] = []

    def walk(path: str, current: nn.Module) -> None:
        if isinstance(current, (nn.ModuleList, nn.Sequential)) and len(current) > 1:
            for name, child in current.named_children():
                if any(True for _ in child.parameters()):
                    found.append(f"{path}.{name}" if path else name)
            return
        for name, child in current.named_children():
            walk(f"{path}.{name}" if path else name, child)

    walk("", module)
    return tuple(found)


def default_stages(module: nn.Module, n_stages: int) -> tuple[tuple[str, ...], ...]:
    """Cut the module's blocks into `n_stages` runs of about equal parameter counts.

    What lies before the first block goes to the first stage, what lies after the last block to the last.
    Raises PlanError where there are fewer blocks than stages.
    """
    blocks = default_blocks(module)
    if len(blocks) < n_stages:
        raise PlanError(
            f"pp * vpp = {n_stages} stages, but the model has {len(blocks)} blocks; use at most that many"
        )
    sizes = [sum(p.numel() for p in module.get_submodule(b).parameters()) for b in blocks]
    done = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    starts = [0]
    for k in range(1, n_stages):
        choices = range(starts[-1] + 1, len(blocks) - (n_stages - k) + 1)
        starts.append(min(choices, key=lambda i: abs(done[i] - done[-1] * k / n_stages)))
    return tuple(tuple(blocks[a:b]) for a, b in zip(starts, [*starts[1:], len(blocks)], strict=True))


def present(module: nn.Module, paths: Sequence[str], prefix: str = "") -> list[nn.Module]:
    """The modules of `paths` that this stage's module tree still holds with parameters, each once; of lists
    and dictionaries, which are never called themselves, what they hold."""
    found: dict[nn.Module, None] = {}
    for path in paths:
        try:
            block = module.get_submodule(prefix + path)
        except AttributeError:
            continue
        found |= {m: None for m in _called(block) if any(True for _ in m.parameters())}
    return list(found)


def _called(block: nn.Module) -> Iterator[nn.Module]:
    from torch import nn

    if not isinstance(block, (nn.ModuleList, nn.ModuleDict)):
        yield block
        return
    for child in block.children():
        yield from _called(child)


def checkpoint_blocks(blocks: Sequence[nn.Module]) -> None:
    """Make every block keep only its inputs and compute its forward again in backward."""
    for block in blocks:
        # An attribute of the instance hides the method; names of parameters stay as they are.
        block.forward = _checkpointed(block.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    from torch.utils.checkpoint import checkpoint

    return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
