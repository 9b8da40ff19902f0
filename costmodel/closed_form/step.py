"""Step time of pipeline schedules in closed form, for many plans with the same number of stages at once.

Arrays of stages have shape [n, v, p]: n plans, v chunks per rank, p ranks; stage = chunk * p + rank. With
F, B, I, W for the work of a stage and c for a transfer, a rank that posts a receive when it needs it spends
F + B + c_in + c_out on a micro-batch. A chain of actions that wait for each other takes at least its length:

    before rank s  +  all of rank s's work  +  the way back from rank s to rank t  +  what t does at the end

whatever the order of the actions, so the longest such chain is a bound. It is the step of 1F1B and of its
interleaved form with even stages (arXiv 2104.04473, section 2.2). GPipe is a flow shop, whose makespan is
known for uneven stages too; zero bubble (arXiv 2401.10241, section 2.3.1) defers weight gradients, rank r by
r passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodel.estimate import FloatArray, IntArray

__all__ = ["KINDS", "Stages", "backward_ends", "chains_end_s", "kind_of"]

KINDS = {
    "1f1b": ("alternate", "alternate"),
    "pipedream-flush": ("alternate", "alternate"),
    "dapple": ("alternate", "alternate"),
    "interleaved": ("alternate", "alternate"),
    "gpipe": ("flow shop", "any"),
    "looped-bfs": ("flow shop", "any"),
    "zb": ("lagging", "lagging"),
    "zb-h1": ("lagging", "lagging"),
}
"""Schedules with a closed form: which, with one chunk per rank and with several."""

_ALL = slice(None)


def kind_of(schedule: str, vpp: int) -> str:
    """Which closed form a schedule has with `vpp` chunks per rank."""
    return KINDS[schedule][vpp > 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Work of every stage for one micro-batch, in seconds; each array has shape [n, v, p].

    `send_s`: to the next stage; `again_s`: what a micro-batch's gradients cost more where others are there.
    """

    forward_s: FloatArray
    input_s: FloatArray
    weight_s: FloatArray
    again_s: FloatArray
    send_s: FloatArray
    num_microbatches: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    """Shape [n]."""
    p2p_overlap: bool

    @property
    def n_ranks(self) -> int:
        """Pipeline ranks."""
        return int(self.forward_s.shape[2])

    @property
    def backward_s(self) -> FloatArray:
        """Both gradients."""
        return self.input_s + self.weight_s

    def chain(self, values: FloatArray) -> FloatArray:
        """Stages in forward order, shape [n, v * p]."""
        return values.reshape(values.shape[0], -1)


def backward_ends(stages: Stages, kind: str) -> tuple[FloatArray, FloatArray]:
    """(when each rank's last backward can have ended at the earliest, the way back before it), [n, p].

    Rank t cannot end before max over s >= t of first[s] + back[s] - back[t]: from the end of rank s's work
    the last micro-batch goes back through the stages between.
    """
    m = stages.num_microbatches[:, None].astype(np.float64)
    more = (m > 1.0).astype(np.float64)
    p = stages.n_ranks
    forward, send = stages.chain(stages.forward_s)[:, :p], stages.chain(stages.send_s)[:, :p]
    again = stages.again_s
    split = kind == "lagging"
    back = (stages.input_s if split else stages.backward_s + again * more[:, :, None])[:, 0, :]
    before = _before(forward + send)
    if not stages.p2p_overlap:  # the first receive is counted with the rank's own work
        before[:, 1:] -= send[:, :-1]
    way_back = _before(back + send)
    received = np.zeros_like(stages.send_s) if stages.p2p_overlap else _received(stages)
    work = m * (stages.forward_s + stages.input_s + received).sum(axis=1)
    weights, adding = stages.weight_s.sum(axis=1), again.sum(axis=1)
    if split:
        left = _left(stages, stages.num_microbatches[:, None], stages.weight_s + again)
        done = np.maximum(0.0, m * weights + (m - 1.0) * adding - left)
        return before + work + done, way_back
    return before + work + m * weights + (m - 1.0) * adding, way_back


def chains_end_s(stages: Stages, kind: str, before_s: FloatArray, of: IntArray | slice = _ALL) -> FloatArray:
    """When each rank's backwards end at the earliest; seconds, shape [n, p]. With what a rank does after them
    no step is shorter than the latest of its ranks.

    `before_s` [n, p]: what a rank does besides its forwards and backwards before. `of`: which of the stages'
    plans each is of that lie alike; by default there are as many.
    """
    ends, way_back = backward_ends(stages, kind)
    ends, way_back = ends[of] + before_s, way_back[of]
    ends[:, 0] = np.maximum(ends[:, 0], _one_micro_batch(stages, kind)[of])
    reach = np.maximum.accumulate((ends + way_back)[:, ::-1], axis=1)[:, ::-1] - way_back
    if kind == "lagging":
        last_weight = stages.weight_s[:, 0, :]
        m = stages.num_microbatches[:, None]
        every = ends + _left(stages, m, stages.weight_s + stages.again_s)[of]
        reach = np.maximum(reach + last_weight[of], every)
    elif kind == "flow shop":
        reach = np.maximum(reach, _flow_shop(stages)[of])
    return np.asarray(reach)


def _one_micro_batch(stages: Stages, kind: str) -> FloatArray:
    """One micro-batch on its way through all stages and back to the first."""
    back = stages.input_s if kind == "lagging" else stages.backward_s
    return np.asarray((stages.forward_s + back + 2.0 * stages.send_s).sum(axis=(1, 2)))


def _left(
    stages: Stages, m: np.ndarray[tuple[int, int], np.dtype[np.int64]], weight_s: FloatArray
) -> FloatArray:
    """Weight gradients that rank r makes after its last input gradient: r + 1, the last of a round
    of q micro-batches through the chunks, first chunks last."""
    _, v, p = stages.forward_s.shape
    q = m // np.maximum(1, m // p)
    left = np.zeros(weight_s[:, 0, :].shape)
    for c in range(v):
        left += np.clip(np.arange(p) + 1 - c * q, 0, q) * weight_s[:, c, :]
    return left


def _flow_shop(stages: Stages) -> FloatArray:
    """End of each rank's last backward where all forwards come before all backwards, one stage per rank."""
    m = stages.num_microbatches[:, None].astype(np.float64)
    forward, send = stages.forward_s[:, 0, :], stages.send_s[:, 0, :]
    backward = stages.backward_s[:, 0, :]
    more = backward + stages.again_s[:, 0, :] * (m > 1.0)
    arriving = np.concatenate([np.zeros_like(send[:, :1]), send[:, :-1]], axis=1)
    down = forward + (0.0 if stages.p2p_overlap else arriving)
    up = more + (0.0 if stages.p2p_overlap else send)
    longest = np.maximum(down, arriving) if stages.p2p_overlap else down
    first = (forward + arriving).sum(axis=1, keepdims=True) + (m - 1.0) * longest.max(axis=1, keepdims=True)
    slowest = np.maximum(up, send) if stages.p2p_overlap else up
    bottleneck = np.maximum.accumulate(slowest[:, ::-1], axis=1)[:, ::-1]
    path = np.cumsum((more + send)[:, ::-1], axis=1)[:, ::-1]
    alone = backward[:, -1:] - more[:, -1:]
    return np.asarray(
        np.where(
            m > 1.0,
            first + backward[:, -1:] + path + np.maximum(0.0, m - 2.0) * bottleneck,
            first + path + alone,
        )
    )


def _received(stages: Stages) -> FloatArray:
    """Per stage what it waits for as it receives: its input, and its output's gradient."""
    send = stages.chain(stages.send_s)
    arriving = np.concatenate([np.zeros_like(send[:, :1]), send[:, :-1]], axis=1)
    return (arriving + send).reshape(stages.send_s.shape)


def _before(values: FloatArray) -> FloatArray:
    """Sum of what stands before each column."""
    return np.concatenate([np.zeros_like(values[:, :1]), np.cumsum(values, axis=1)[:, :-1]], axis=1)
