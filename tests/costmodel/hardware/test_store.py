"""Profiles round-trip, and a file that is not one says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from costmodel.errors import ProfileError, UsageError
from costmodel.hardware.schema import FORMAT_VERSION, BorrowedFit, HostValue
from costmodel.hardware.store import SHIPPED, list_profiles, load_profile, profile_file_name, save_profile
from tests.costmodel.hardware.devices import plain_fit, profile


def test_round_trip(tmp_path: Path) -> None:
    before = profile(plain_fit()).model_copy(update={"host": {"dispatch_s": HostValue(value_s=5e-6)}})
    path = save_profile(before, tmp_path / "own.json")
    assert load_profile(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["own.json"]  # no temporary file stays


def test_no_overwrite_without_force(tmp_path: Path) -> None:
    path = save_profile(profile(), tmp_path / "own.json")
    with pytest.raises(ProfileError, match="--force"):
        save_profile(profile(), path, force=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated or not JSON"),
        (lambda text: "[1, 2]", "no format_version"),
        (lambda text: text.replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 99'), "newer"),
        (lambda text: text.replace('"created"', '"makings"'), "break the format"),
        (lambda text: text.replace("2039000000000.0", "-1"), "memory_bytes_per_s"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, change: object, message: str) -> None:
    path = save_profile(profile(plain_fit()), tmp_path / "own.json")
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(ProfileError, match=message) as caught:
        load_profile(path)
    assert "own.json" in str(caught.value)


def test_missing_file_and_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no such file"):
        load_profile(tmp_path / "nothing.json")
    with pytest.raises(UsageError, match="H100-SXM5-80GB"):
        load_profile("no-such-gpu")


def test_shipped_profiles_load_by_name_and_alias() -> None:
    assert {"A100-SXM4-80GB", "H100-SXM5-80GB", "H200-SXM", "B200", "V100-SXM2-32GB", "T4", "L4"} <= set(
        list_profiles()
    )
    assert load_profile("h100").name == "H100-SXM5-80GB"
    assert load_profile("a100 sxm4_80gb") == load_profile("A100-SXM4-80GB")
    for name in list_profiles():
        assert (SHIPPED / profile_file_name(name)).stat().st_size < 900_000, name


def test_shipped_fits_say_where_they_come_from() -> None:
    for name in ("H100-SXM5-80GB", "L4"):
        loaded = load_profile(name)
        assert loaded.operators
        for fit in loaded.operators:
            assert fit.source
            assert fit.transferred_from != name
            assert 0.0 < fit.residual.log_sigma < 3.0
    data = json.loads((SHIPPED / profile_file_name("L4")).read_text())
    assert data["borrowed"]
    assert "operators" not in data
    assert all(fit.transferred_from for fit in load_profile("L4").operators)


def test_borrowed_fits_come_from_the_donor_beside_the_file(tmp_path: Path) -> None:
    donor = profile(plain_fit(on="H100-SXM5-80GB"), on="H100-SXM5-80GB")
    entry = BorrowedFit(kind="gemm", variant="nt", dtype="bf16", timing="cuda_graph", donor=donor.name)
    borrower = profile(on="H200-SXM").model_copy(update={"borrowed": (entry,)})
    path = save_profile(borrower, tmp_path / "h200-sxm.json")
    save_profile(donor, tmp_path / profile_file_name(donor.name))
    loaded = load_profile(path)
    assert [f.transferred_from for f in loaded.operators] == ["H100-SXM5-80GB"]
    assert loaded.operators[0].parameters == donor.operators[0].parameters
    unknown = entry.model_copy(update={"donor": "Z9000"})
    save_profile(borrower.model_copy(update={"borrowed": (unknown,)}), path)
    with pytest.raises(ProfileError, match="borrows fits of Z9000"):
        load_profile(path)
