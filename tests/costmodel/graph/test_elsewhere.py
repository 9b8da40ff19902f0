"""A model traced by a second process: the same graphs and the same errors, whatever becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from costmodel import forked
from costmodel.errors import ForeshardError, ModelArgumentError, TraceError
from costmodel.graph.elsewhere import Tracer
from costmodel.graph.model_graph import ModelGraph
from costmodel.graph.scalable import scalable_graph
from costmodel.models import ModelSource, resolve
from costmodel.models.source import BuiltModel
from planner import api
from planner.search import search

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")

ROOT = str(Path(__file__).parents[3])
HERE = os.getpid()
GPT2 = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 64}
HOW = {"training": True, "attention": "flash", "dtype": "bf16", "autocast": ""}


@pytest.fixture(autouse=True)
def _may_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test runners may have threads of their own, which do nothing while a test runs."""
    monkeypatch.setattr(forked, "can_fork", lambda: True)


def of_two_layers() -> Any:
    return nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 1)), (torch.randn(2, 8),)


def normalized() -> Any:
    """Cannot be trained on one sample."""
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1)), (torch.randn(4, 8),)


def reads_values() -> Any:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if x.sum().item() > 0 else -self.layer(x)

    return Branching(), (torch.randn(2, 8),)


def refuses() -> Any:
    raise OSError("no such size")


def fails_elsewhere() -> Any:
    """Not an error of foreshard's: the other process has no answer."""
    if os.getpid() != HERE:
        raise KeyboardInterrupt
    return of_two_layers()


def dies_elsewhere() -> Any:
    if os.getpid() != HERE:
        os.kill(os.getpid(), signal.SIGKILL)
    return of_two_layers()


def tells() -> Any:
    print("made by", "here" if os.getpid() == HERE else "another")
    return of_two_layers()


def own(name: str) -> str:
    return f"{__name__}:{name}"


def traced(source: ModelSource, size: int = 2) -> ModelGraph:
    return replace(scalable_graph(source, **HOW).at(micro_batch_size=size), trace_time_s=0.0)


@pytest.mark.parametrize(
    ("model", "asked"),
    [("gpt2", {"overrides": GPT2, "seq_len": 16}), (own("of_two_layers"), {}), (own("normalized"), {})],
)
@pytest.mark.parametrize("size", [1, 2, 8])
def test_its_graphs_are_those_of_this_process(model: str, asked: dict[str, Any], size: int) -> None:
    with Tracer(wanted=True) as tracer:
        there, here = tracer.resolve(model, **asked), resolve(model, **asked)
        assert replace(there, builder=here.builder) == here
        assert there.config == here.config
        assert scalable_graph(there, **HOW).elsewhere(size) is not None
        assert traced(there, size) == traced(here, size)


def test_it_traces_another_length_and_in_another_way() -> None:
    here = resolve("gpt2", overrides=GPT2, seq_len=16)
    with Tracer(wanted=True) as tracer:
        there = tracer.resolve("gpt2", overrides=GPT2, seq_len=16)
        assert traced(replace(there, seq_len=8)) == traced(replace(here, seq_len=8))
        for how in ({**HOW, "dtype": "fp32"}, {**HOW, "training": False}, {**HOW, "attention": "unfused"}):
            graphs = [scalable_graph(s, **how).at(micro_batch_size=2) for s in (there, here)]
            assert replace(graphs[0], trace_time_s=0.0) == replace(graphs[1], trace_time_s=0.0)


def test_each_source_is_its_own() -> None:
    with Tracer(wanted=True) as tracer:
        asked = [{**GPT2, "n_layer": 2}, {**GPT2, "n_embd": 64}]
        sources = [tracer.resolve("gpt2", overrides=overrides, seq_len=16) for overrides in asked]
        for source, overrides in zip(sources, asked, strict=True):
            assert traced(source) == traced(resolve("gpt2", overrides=overrides, seq_len=16))


def test_a_model_is_built_here_when_asked_for() -> None:
    with Tracer(wanted=True) as tracer:
        source = tracer.resolve("gpt2", overrides=GPT2, seq_len=16)
        assert source.build("meta").module.config.n_layer == 2


def test_another_builder_is_not_taken_for_the_one_that_it_knows() -> None:
    def build(batch: int, seq_len: int) -> BuiltModel:
        return BuiltModel(module=nn.Linear(4, 2), args=(torch.randn(batch, 4),), kwargs={})

    with Tracer(wanted=True) as tracer:
        changed = replace(tracer.resolve(own("of_two_layers")), builder=build)
        assert scalable_graph(changed, **HOW).elsewhere(2) is None
        assert traced(changed).n_parameters == 10


@pytest.mark.parametrize(
    ("model", "asked", "kind"),
    [
        ("gpt-2", {}, ModelArgumentError),
        ("gpt2", {"overrides": {"n_layers": 2}}, ModelArgumentError),
        ("no_such_module:build", {}, ModelArgumentError),
        (own("no_such_function"), {}, ModelArgumentError),
        (own("refuses"), {}, ModelArgumentError),
        (own("reads_values"), {}, TraceError),
    ],
)
def test_its_errors_are_those_of_this_process(
    model: str, asked: dict[str, Any], kind: type[ForeshardError]
) -> None:
    said = []
    with Tracer(wanted=True) as tracer:
        for resolving in (tracer.resolve, resolve):
            with pytest.raises(kind) as error:
                traced(resolving(model, **asked))
            said.append((type(error.value), str(error.value)))
    assert said[0] == said[1]


@pytest.mark.parametrize("model", ["fails_elsewhere", "dies_elsewhere"])
def test_what_it_cannot_trace_is_traced_here(model: str) -> None:
    with Tracer(wanted=True) as tracer:
        assert traced(tracer.resolve(own(model))) == traced(resolve(own(model)))


@pytest.mark.parametrize("when", ["resolved", "traced"])
def test_it_may_be_killed_at_any_time(when: str) -> None:
    with Tracer(wanted=True) as tracer:
        source = None
        if when == "traced":
            source = tracer.resolve(own("of_two_layers"))
        process = tracer._other._process
        assert process is not None
        process.kill()
        source = source or tracer.resolve(own("of_two_layers"))
        assert traced(source) == replace(traced(resolve(own("of_two_layers"))), name=source.name)


def test_a_models_words_are_heard(capfd: pytest.CaptureFixture[str]) -> None:
    with Tracer(wanted=True) as tracer:
        traced(tracer.resolve(own("tells")))
    assert capfd.readouterr().out == "made by another\n"


def test_unwanted_all_is_done_here() -> None:
    with Tracer(wanted=False) as tracer:
        source = tracer.resolve(own("of_two_layers"))
        assert scalable_graph(source, **HOW).elsewhere(2) is None
        assert traced(source) == traced(resolve(own("of_two_layers")))


@pytest.mark.parametrize(
    ("model", "asked", "processes"),
    [("gpt2", {"overrides": GPT2, "seq_len": 16}, 2), (own("normalized"), {}, 2), (own("normalized"), {}, 1)],
)
def test_a_search_finds_the_same(model: str, asked: dict[str, Any], processes: int) -> None:
    how: dict[str, Any] = {"hardware": "a100-sxm4-80gb", "framework": "pytorch-bf16", **asked}
    with Tracer(wanted=True) as tracer:
        found = [
            search(
                api.forecaster(model, tracer=by, **how),
                n_devices=2,
                global_batch_size=8,
                processes=processes,
            )
            for by in (tracer, None)
        ]
    assert [str(r.prediction.plan) for r in found[0].ranked] == [
        str(r.prediction.plan) for r in found[1].ranked
    ]
    assert [r.prediction.step_time_s for r in found[0].ranked] == [
        r.prediction.step_time_s for r in found[1].ranked
    ]
    assert found[0].n_excluded == found[1].n_excluded


_MODEL = """
import torch
from torch import nn
def make(width=64):
    return nn.Sequential(nn.Linear(8, width), nn.Linear(width, 1)), (torch.randn(2, 8),)
"""
_PLAN = """
import sys
from costmodel import forked
forked.can_fork = lambda: WANTED
from planner.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def planned(folder: Path, model: str, *, wanted: bool) -> tuple[int, Any, str]:
    """Exit code, plans and stderr of `foreshard plan` as a process of its own."""
    program = _PLAN.replace("WANTED", str(wanted))
    options = ["-H", "a100-sxm4-80gb", "-n", "4", "-B", "8", "--framework", "pytorch-bf16", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", model, *options],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    return done.returncode, json.loads(done.stdout)["plans"] if done.stdout else None, done.stderr


def test_a_command_needs_no_torch_for_a_model_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_MODEL)
    (code, plans, err), (_, expected, _) = (planned(tmp_path, "mine:make", wanted=w) for w in (True, False))
    assert (code, err.split()[-1]) == (0, "False")
    for plan in (*plans, *expected):
        del plan["hardware"]
    assert plans == expected


def test_a_command_says_the_same_of_a_wrong_model(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_MODEL)
    with_tracer, without = (planned(tmp_path, "mine:made", wanted=w) for w in (True, False))
    assert with_tracer[0] == without[0] == 2
    assert with_tracer[2].splitlines()[0] == without[2].splitlines()[0]
