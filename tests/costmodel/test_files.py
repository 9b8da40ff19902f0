"""Files appear whole, readable as any other, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from costmodel.errors import ForeshardError, UsageError
from costmodel.files import write_figure, write_whole


def test_a_file_replaces_the_one_there_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    assert write_whole(path, "first") == path
    write_whole(path, b"second")
    assert path.read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_others_may_read_it_as_they_may_any_new_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    assert write_whole(tmp_path / "a", "text").stat().st_mode == plain.stat().st_mode


def test_what_cannot_be_moved_into_place_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "a", "text")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ForeshardError, match=r"file/a cannot be written"):
        write_whole(tmp_path / "file" / "a", "text")
    with pytest.raises(ForeshardError, match="cannot be written"):
        write_whole(tmp_path, "text")


def test_a_figure_has_the_format_of_its_suffix(tmp_path: Path) -> None:
    assert write_figure(tmp_path / "a.png", Figure()).read_bytes().startswith(b"\x89PNG")
    assert write_figure(tmp_path / "a.svg", Figure()).read_text().startswith("<?xml")
    with pytest.raises(UsageError, match="not written as 'nope'; take one of"):
        write_figure(tmp_path / "a.nope", Figure())
