"""What is asked beside a ranking is refused before the search, which can take long."""

from __future__ import annotations

from typing import Any

import pytest

from costmodel.errors import ForeshardError
from planner import api


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"objectives": ("step_time", "speed")}, "unknown objective 'speed'"),
        ({"objectives": ("cost", "cost")}, "each once"),
        ({"explain": ("dp4.mbs2", "dp4.mbs2")}, "name two that differ"),
        ({"rank_of": "dp2.gbs8"}, "world_size"),
    ],
)
def test_bad_words_end_before_the_search(
    asked: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def search(*_: Any, **__: Any) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr("planner.search.search", search)
    with pytest.raises(ForeshardError, match=says):
        api.plan("mlp-mnist", hardware="a100-sxm4-80gb", n_devices=4, global_batch_size=8, **asked)
