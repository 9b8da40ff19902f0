"""The journal keeps whole visits of one machine, whatever happens to the process that writes it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.journal import Journal, Visit, merge_visits, read_journal, samples_path
from costmodel.errors import InputFileError, MeasurementError
from tests.calibrate.machines import a_machine


def a_visit(time_s: float = 1e-3, **changes: object) -> Visit:
    fields: dict[str, object] = {
        "kind": "softmax",
        "variant": "fwd",
        "dtype": "fp32",
        "dims": {"rows": 4, "cols": 8, "bytes": 256},
        "timing": "eager_loop",
        "setting": "together",
        "time_s": time_s,
        "spread": 0.02,
        "n": 10,
    }
    return Visit(**{**fields, **changes})  # type: ignore[arg-type]


@given(
    time_s=st.floats(1e-9, 10.0),
    rows=st.integers(1, 1 << 40),
    note=st.text(max_size=20),
    n=st.integers(0, 10**6),
)
def test_a_visit_survives_its_line(time_s: float, rows: int, note: str, n: int) -> None:
    visit = a_visit(time_s, dims={"rows": rows}, note=note, n=n)
    assert Visit.from_fields(json.loads(visit.to_line())) == visit
    assert "\n" not in visit.to_line()


def test_a_case_that_could_not_run_is_kept_as_such_and_not_merged() -> None:
    visit = a_visit(math.nan, note="no kernel")
    again = Visit.from_fields(json.loads(visit.to_line()))
    assert math.isnan(again.time_s)
    assert again.note == "no kernel"
    assert merge_visits([again]) == []


def test_resume_keeps_visits_and_drops_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    journal = Journal(path, a_machine(), resume=True)
    journal.append(a_visit(1e-3))
    journal.append(a_visit(2e-3))
    journal.close()
    with path.open("a") as file:
        file.write(a_visit(9.0).to_line()[:25])  # killed while writing
    again = Journal(path, a_machine(load=5.0, clock_hz=1e9), resume=True)
    assert again.counts() == {a_visit().key: 2}
    again.append(a_visit(3e-3))
    again.close()
    _, visits = read_journal(path)
    assert [v.time_s for v in visits] == [1e-3, 2e-3, 3e-3]


def test_fresh_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    journal = Journal(path, a_machine(), resume=True)
    journal.append(a_visit())
    journal.close()
    Journal(path, a_machine(), resume=False).close()
    assert read_journal(path)[1] == []


@pytest.mark.parametrize(
    ("field", "value"), [("device", "Other CPU"), ("threads", 2), ("torch", "2.12.0"), ("world_size", 4)]
)
def test_another_machine_is_refused_by_the_field_that_differs(
    tmp_path: Path, field: str, value: object
) -> None:
    path = tmp_path / "x.samples.jsonl"
    Journal(path, a_machine(), resume=True).close()
    with pytest.raises(MeasurementError, match=field) as caught:
        Journal(path, a_machine(**{field: value}), resume=True)
    assert "--fresh" in str(caught.value)
    assert read_journal(path)[0] == a_machine()  # the file is as it was


def test_merging_takes_the_median_of_visits() -> None:
    times = [5e-3, 1e-3, 2e-3, 3e-3, 4e-3]
    (sample,) = merge_visits([a_visit(t) for t in times])
    assert sample.time_s == 3e-3
    assert sample.n_visits == 5
    assert sample.n == 50
    assert sample.spread == pytest.approx((4e-3 - 2e-3) / 3e-3)  # quartiles of 1..5 ms


def test_other_sizes_and_settings_are_other_cases() -> None:
    visits = [a_visit(), a_visit(dims={"rows": 5, "cols": 8, "bytes": 320}), a_visit(setting="alone")]
    assert len(merge_visits(visits)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line"),
        ("not json\n", "first line"),
        ('{"format": 99, "machine": {}}\n', "format 99"),
        ('{"format": 1, "machine": {"device": "x"}}\n', "description of their machine"),
    ],
)
def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.samples.jsonl"
    path.write_text(text)
    with pytest.raises((InputFileError, MeasurementError), match=message):
        read_journal(path)


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.samples.jsonl"
    Journal(path, a_machine(), resume=True).close()
    with path.open("a") as file:
        file.write('{"kind": "gemm"}\n')
    with pytest.raises(InputFileError, match="line 2"):
        read_journal(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="foreshard calibrate"):
        read_journal(samples_path(tmp_path / "gone.json"))


def test_visits_of_a_collective_are_averaged_over_their_calls() -> None:
    """A step pays for the sum of its transfers, the slow ones too."""
    fields = {"kind": "all_reduce", "variant": "", "dims": {"size_bytes": 1024, "n_ranks": 2}}
    merged = merge_visits(
        [a_visit(1e-3, n=30, spread=0.1, **fields), a_visit(5e-3, n=10, spread=0.1, **fields)]
    )
    assert merged[0].time_s == pytest.approx(2e-3)
    assert merged[0].n == 40
    assert merged[0].spread < 0.1  # two visits know the mean better than one
