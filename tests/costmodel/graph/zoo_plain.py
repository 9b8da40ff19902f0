"""Modules in plain torch as people write them: scans, graphs, streams, teachers, losses of their own."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributions, nn
from torch.nn import functional

from tests.costmodel.graph.zoo import ZOO, Made, add

__all__ = ["ZOO"]

_BATCH, _LENGTH, _WIDTH = 4, 16, 32


def _stack(*blocks: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Embedding(50, _WIDTH), *blocks, nn.Linear(_WIDTH, 50))


def _ids() -> torch.Tensor:
    return torch.randint(0, 50, (_BATCH, _LENGTH))


def _sequence() -> torch.Tensor:
    return torch.randn(_BATCH, _LENGTH, _WIDTH)


class _Scan(nn.Module):
    """A state space in chunks: products inside a chunk, a carried state between them."""

    def __init__(self, heads: int = 4, states: int = 8, chunk: int = 4) -> None:
        super().__init__()
        self.sizes = [_WIDTH, states, states, heads]
        self.heads, self.chunk = heads, chunk
        self.into = nn.Linear(_WIDTH, sum(self.sizes))
        self.out = nn.Linear(_WIDTH, _WIDTH)
        self.norm = nn.RMSNorm(_WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        cut = (batch, length // self.chunk, self.chunk)
        u, keys, queries, step = self.into(self.norm(x)).split(self.sizes, -1)
        u, keys, queries = u.view(*cut, self.heads, -1), keys.view(*cut, -1), queries.view(*cut, -1)
        decay = -functional.softplus(step).view(*cut, self.heads).permute(0, 3, 1, 2).cumsum(-1)
        later = ~torch.ones(self.chunk, self.chunk, dtype=torch.bool).tril()
        inside = (decay[..., :, None] - decay[..., None, :]).masked_fill(later, -torch.inf).exp()
        y = torch.einsum("bcln,bcsn,bhcls,bcshp->bclhp", queries, keys, inside, u)
        made = torch.einsum("bcln,bclhp->bchpn", keys, u)
        state, before = torch.zeros_like(made[:, 0]), []
        for number in range(made.shape[1]):
            before.append(state)
            state = state * decay[:, :, number, -1, None, None].exp() + made[:, number]
        y = y + torch.einsum("bcln,bchpn->bclhp", queries, torch.stack(before, 1))
        return x + self.out(y.reshape(batch, length, width))


@add("chunked-scan")
def _scan() -> Made:
    return _stack(*(_Scan() for _ in range(5))), (_ids(),), {}


class _Recurrence(nn.Module):
    """Sums carried from position to position, as RWKV's."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.rand(2, _WIDTH))
        self.key, self.value = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.shift = nn.ZeroPad2d((0, 0, 1, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.shift(x)
        key, value = (
            f(x * m + before * (1 - m)) for f, m in zip((self.key, self.value), self.mix, strict=True)
        )
        total, out = torch.zeros_like(key[:, 0]), []
        for position in range(x.shape[1]):
            total = 0.9 * total + key[:, position].exp() * value[:, position]
            out.append(total)
        return x + torch.stack(out, 1)


@add("recurrent-sums")
def _recurrence() -> Made:
    return _stack(*(_Recurrence() for _ in range(4))), (_ids(),), {}


class _Messages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * _WIDTH, _WIDTH), nn.GRUCell(_WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges.unbind(1)
        sent = self.message(torch.cat([x[source], x[target]], -1)).relu()
        return self.update(torch.zeros_like(x).index_add(0, target, sent), x)


class _Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Messages() for _ in range(4))

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, edges)
        return x


@add("graph-network")
def _graph() -> Made:
    return _Graph(), (torch.randn(20, _WIDTH), torch.randint(0, 20, (60, 2))), {}


class _Sampled(nn.Module):
    """Attention to a few learnt places of a picture."""

    def __init__(self, places: int = 4) -> None:
        super().__init__()
        self.places = nn.Linear(_WIDTH, 2 * places)
        self.weights = nn.Linear(_WIDTH, places)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(2).mT
        grid = self.places(rows).unflatten(-1, (-1, 2)).tanh()
        seen = functional.grid_sample(x, grid, align_corners=False)
        return x + (seen * self.weights(rows).softmax(-1)[:, None]).sum(-1).view_as(x)


@add("sampled-places")
def _sampled() -> Made:
    return nn.Sequential(*(_Sampled() for _ in range(4))), (torch.randn(_BATCH, _WIDTH, 6, 6),), {}


class _Normals(nn.Module):
    """A variational autoencoder by torch.distributions."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(_WIDTH, 32), nn.Linear(16, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_deviation = self.encode(x).chunk(2, -1)
        posterior = distributions.Normal(mean, log_deviation.exp())
        prior = distributions.Normal(torch.zeros_like(mean), 1.0)
        likelihood = distributions.Bernoulli(logits=self.decode(posterior.rsample()))
        seen = likelihood.log_prob(x.round()).sum(-1)
        return (distributions.kl_divergence(posterior, prior).sum(-1) - seen).mean()


@add("distributions")
def _normals() -> Made:
    return _Normals(), (torch.rand(_BATCH, _WIDTH),), {}


class _Speech(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.cut = norm(nn.Conv1d(_WIDTH, _WIDTH, 3, stride=2))
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Conv1d(_WIDTH, 2 * _WIDTH, 1), nn.GLU(1)) for _ in range(4))
        )
        self.head = nn.Linear(_WIDTH, 20)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        scores = self.head(self.blocks(self.cut(x.mT)).mT).log_softmax(-1).transpose(0, 1)
        steps, batch = scores.shape[:2]
        lengths = torch.full((batch,), steps), torch.full((batch,), labels.shape[1])
        return functional.ctc_loss(scores, labels, *lengths)


@add("ctc-loss")
def _speech() -> Made:
    return _Speech(), (_sequence(), torch.randint(1, 20, (_BATCH, 3))), {}


class _Streams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = pair
        x = x + self.left(y).relu()
        return x, y + self.right(x).relu()


@add("two-streams")
def _streams() -> Made:
    """The last block's second stream is read by nobody."""
    return nn.Sequential(*(_Streams() for _ in range(7))), ((_sequence(), _sequence()),), {}


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + functional.gelu(self.layer(x))


@add("mean-of-the-last-block")
def _mean() -> Made:
    """Each block's output is kept for the next one's weights, the last one's for nothing."""
    return nn.Sequential(*(_Residual() for _ in range(8))), (_sequence(),), {}


class _Teacher(nn.Module):
    """A moving average of the model in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(*(_Residual() for _ in range(6)))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for old, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                old.mul_(0.99).add_(new, alpha=0.01)
            wanted = self.teacher(x)
        return functional.mse_loss(self.student(x), wanted)


@add("moving-average")
def _teacher() -> Made:
    return _Teacher(), (_sequence(),), {}


class _Penalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(6)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean() + sum(p.square().sum() for p in self.parameters())


@add("penalised-weights")
def _penalised() -> Made:
    return _Penalised(), (_sequence(),), {}


class _Spectral(nn.Module):
    def __init__(self, kept: int = 4) -> None:
        super().__init__()
        self.kept = kept
        self.weight = nn.Parameter(torch.randn(8, 8, kept, kept, dtype=torch.cfloat))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = torch.fft.rfft2(x)
        made = torch.zeros_like(seen)
        low = (..., slice(self.kept), slice(self.kept))
        made[low] = torch.einsum("bixy,ioxy->boxy", seen[low], self.weight)
        return functional.gelu(torch.fft.irfft2(made, s=x.shape[-2:]))


@add("complex-weights")
def _spectral() -> Made:
    return nn.Sequential(*(_Spectral() for _ in range(4))), (torch.randn(_BATCH, 8, 16, 16),), {}


class _Cached(nn.Module):
    """Keys written into a buffer by place; sanity checks of values on the way."""

    def __init__(self, places: int = 64) -> None:
        super().__init__()
        self.keys, self.out = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.register_buffer("cache", torch.zeros(_BATCH, places, _WIDTH))

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.cache.index_copy_(1, places, self.keys(x))
        y = self.out((x @ self.cache.mT).softmax(-1) @ self.cache.clone())
        if torch.isnan(y).any() or not torch.isfinite(y).all() or (y != y).any():
            raise ValueError("no numbers")
        return y


@add("cache-and-checks")
def _cached() -> Made:
    return _Cached(), (_sequence(), torch.arange(_LENGTH)), {}


@dataclass
class _Answer:
    hidden: torch.Tensor
    loss: torch.Tensor


class _Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 5)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> Any:
        hidden = self.body(x).relu()
        return _Answer(hidden=hidden, loss=functional.cross_entropy(self.head(hidden).mean(1), labels))


@add("dataclass")
def _answering() -> Made:
    return _Answering(), (_sequence(), torch.randint(0, 5, (_BATCH,))), {}


class _Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heard = nn.LSTM(_WIDTH, _WIDTH, 2, batch_first=True).requires_grad_(False)
        self.head = nn.Linear(_WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y, _ = self.heard(x)
        return self.head(y)


@add("frozen-lstm")
def _frozen() -> Made:
    return _Frozen(), (_sequence(),), {}
