"""Traces leave torch's compiler and scipy's optimizers unloaded, and all is there for whoever asks for it
afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_TRACE = """
import sys
from costmodel.graph import trace
from costmodel.models import resolve
sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 128, "n_positions": 16}
model = resolve("gpt2", overrides=sizes, seq_len=16)
before = trace(model)
assert "torch._dynamo.symbolic_convert" not in sys.modules
assert "scipy.optimize" not in sys.modules
import torch
"""

_COMPILES = """
graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph
double = torch.compile(lambda x: 2 * x + 1, backend=backend)
assert double(torch.ones(2)).tolist() == [3.0, 3.0]
assert len(graphs) == 1 and "torch._dynamo.symbolic_convert" in sys.modules
after = trace(model)
assert [s.operators for s in after.segments] == [s.operators for s in before.segments]
"""

_MARKS = """
@torch.compiler.disable
def left_alone(x):
    return x.sum()

@torch._dynamo.assume_constant_result
def constant():
    return 3

assert "torch._dynamo.symbolic_convert" not in sys.modules
assert left_alone(torch.ones(2)) == 2.0
whole = torch.compile(lambda x: constant() * left_alone(x + 1), backend="eager", fullgraph=True)
parts = torch.compile(lambda x: constant() * left_alone(x + 1), backend="eager")
assert parts(torch.ones(2)) == 12.0
try:
    whole(torch.ones(2))
except torch._dynamo.exc.Unsupported:
    pass
else:
    raise AssertionError("left_alone should break the graph")
assert constant._dynamo_marked_constant
"""

_ASKED = """
from torch._dynamo.utils import counters
assert "torch._dynamo.symbolic_convert" in sys.modules
try:
    torch._dynamo.no_such_name
except AttributeError as error:
    assert "no_such_name" in str(error)
"""

_MATCHES = """
from transformers.loss.loss_for_object_detection import linear_sum_assignment
rows, columns = linear_sum_assignment([[1.0, 0.0], [0.0, 1.0]])
assert columns.tolist() == [1, 0]
import scipy.optimize
assert scipy.optimize.linear_sum_assignment is sys.modules["scipy.optimize"].linear_sum_assignment
"""


_EACH = """
import os, traceback
for name, then in cases.items():  # each in a process of its own that has traced and no more
    child = os.fork()
    if not child:
        try:
            exec(then)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="tells processes apart by fork")
def test_what_was_left_out_is_loaded_by_who_needs_it() -> None:
    root = str(Path(__file__).parents[3])
    cases = {"compiles": _COMPILES, "marks": _MARKS, "asked": _ASKED, "matches": _MATCHES}
    code = f"{_TRACE}\ncases = {cases!r}\n{_EACH}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
