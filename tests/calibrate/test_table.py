"""The table beside a profile, and what it says about noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibrate.assemble import assemble_profile
from calibrate.journal import Journal, Sample, Visit, merge_visits, samples_path
from calibrate.table import collective_table, noise
from costmodel.errors import InputFileError
from costmodel.hardware.store import save_profile
from tests.calibrate.machines import a_machine
from tests.calibrate.test_assemble import probes


def write(out: Path) -> None:
    journal = Journal(samples_path(out), a_machine(), resume=False)
    for op in ("all_reduce", "all_gather"):
        for power in range(10, 25, 2):
            for factor in (0.99, 1.0, 1.01):
                journal.append(
                    Visit(
                        kind=op,
                        variant="",
                        dtype="fp32",
                        dims={"size_bytes": 2**power, "n_ranks": 2},
                        timing="torch_loop",
                        setting="together",
                        time_s=factor * (1e-4 + 2**power / 1e9),
                        spread=0.01,
                        n=5,
                    )
                )
    journal.close()
    samples = [*probes(), *merge_visits(journal.visits)]
    save_profile(assemble_profile("x", a_machine(), samples), out)


def test_rows_have_bandwidths_as_nccl_tests_defines_them(tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    write(out)
    table = collective_table(out)
    assert [r.op for r in table.rows] == ["all_reduce"] * 8 + ["all_gather"] * 8
    for row in table.rows:
        assert row.algbw_bytes_per_s == pytest.approx(row.size_bytes / row.time_s)
        # two ranks: 2 (n - 1) / n = 1 for all-reduce, (n - 1) / n = 1/2 for all-gather
        factor = 1.0 if row.op == "all_reduce" else 0.5
        assert row.busbw_bytes_per_s == pytest.approx(factor * row.algbw_bytes_per_s)
        assert row.error_fraction == pytest.approx(row.fit_s / row.time_s - 1.0)
        assert abs(row.error_fraction) < 0.2
    assert table.verdict.startswith("noise: quiet")


def test_without_samples_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="foreshard calibrate"):
        collective_table(tmp_path / "p.json")


@pytest.mark.parametrize(
    ("spread", "load", "verdict"),
    [(0.01, 0.1, "quiet"), (0.1, 0.1, "fair"), (0.3, 0.1, "noisy"), (0.01, 0.9, "noisy")],
)
def test_verdicts(spread: float, load: float, verdict: str) -> None:
    sample = Sample(
        kind="softmax",
        variant="fwd",
        dtype="fp32",
        dims={},
        timing="eager_loop",
        setting="together",
        time_s=1e-3,
        spread=spread,
        n=9,
        n_visits=3,
    )
    found = noise([sample] * 10, load)
    assert found.verdict == verdict
    assert found.advice
