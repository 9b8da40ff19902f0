"""Names that torch has changed: the one that the installed release knows, without its warning."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from calibrate.torch_names import current_name, unsynced_buffers


class _Older:
    def __init__(self, module: object, broadcast_buffers: bool = True) -> None: ...


def test_the_new_name_is_taken_where_there_is_one() -> None:
    assert current_name("all_reduce", "no_such_name") is dist.all_reduce
    assert current_name("no_such_name", "all_reduce") is dist.all_reduce


def test_an_older_torch_gets_its_own_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", _Older)
    assert unsynced_buffers() == {"broadcast_buffers": False}


def test_wrapping_does_not_warn_and_forward_leaves_buffers_alone() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wrapped = DistributedDataParallel(torch.nn.BatchNorm1d(2), **unsynced_buffers())
        assert not wrapped.broadcast_buffers
    finally:
        dist.destroy_process_group()
