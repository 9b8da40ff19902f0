"""What a search was asked is written, read back and asked again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodel.errors import ModelArgumentError
from planner import api
from planner.problem import Problem, read_plan_file

CONFIGURATION = """
from transformers import GPT2Config

class OwnConfig(GPT2Config):
    model_type = "own"
"""
MODEL = """
from transformers import GPT2LMHeadModel
from .configuration_own import OwnConfig

class Own(GPT2LMHeadModel):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model folder that brings its own Python code."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODEL)
    names = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 32, "n_positions": 16}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": names, **sizes}))
    return str(folder)


def test_a_model_of_its_own_code_is_built_again_from_its_plan_file(own_code: str, tmp_path: Path) -> None:
    found = api.plan(
        own_code, hardware="a100-sxm4-80gb", n_devices=1, global_batch_size=2, trust_remote_code=True
    )
    path = tmp_path / "plans.json"
    path.write_text(json.dumps(found.to_dict(top=None)))
    read = read_plan_file(path)
    assert read.problem.trust_remote_code
    again = read.problem.forecaster().forecast(read.plans[0]).prediction
    assert again.step_time_s == pytest.approx(read.step_times_s[0])


def test_own_code_does_not_run_where_nobody_asked_for_it(own_code: str) -> None:
    fields = Problem(model=own_code, hardware="a100-sxm4-80gb", n_devices=1, global_batch_size=2).to_dict()
    assert fields.pop("trust_remote_code") is False
    with pytest.raises(ModelArgumentError, match="--trust-remote-code"):
        Problem.from_dict(fields).forecaster()
