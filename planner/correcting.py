"""Correcting a profile by measured runs, and taking the correction off again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from costmodel.errors import ProfileError, UsageError

if TYPE_CHECKING:
    from costmodel.hardware.schema import HardwareProfile
    from planner.learning.check import HeldBack

__all__ = ["Corrected", "learn_hardware"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """The profile with (or, undone, without) its learnt layer, the runs left out by reason, and the score of
    held-back runs where it was asked for."""

    profile: HardwareProfile
    skipped: dict[str, int] = field(default_factory=dict)
    held_back: HeldBack | None = None


def learn_hardware(
    runs: Sequence[Path],
    *,
    profile: str,
    out: Path | None = None,
    source: str | None = None,
    check: bool = False,
    undo: bool = False,
    force: bool = False,
) -> Corrected:
    """Learn from the runs of some files and write the corrected profile to `out` (None: nowhere).

    Raises UsageError on options that do not go together or runs that teach nothing new, InputFileError on
    files that hold no run the profile can learn from, ProfileError where `out` is there without `force`.
    """
    from costmodel.hardware.store import load_profile, save_profile
    from planner.learning.check import check_learning
    from planner.learning.runs import read_learning_runs
    from planner.learning.update import forget, learn
    from planner.render import progress

    if not profile:
        raise UsageError("no profile to correct; give --profile NAME (`foreshard hardware list`) or a file")
    if undo and (runs or check or source):
        raise UsageError("--undo takes the whole layer off; it goes with no runs, --check or --source")
    if not undo and not runs:
        raise UsageError("no runs to learn from; give files of `foreshard validate run` or tables of runs")
    if out is None and not check:
        raise UsageError("nowhere to write; give --out FILE.json (or --check to see what would be gained)")
    if out is not None and out.exists() and not force:
        raise ProfileError(f"{out} is there already; pass --force to overwrite it or choose another name")
    given = load_profile(profile)
    if undo:
        found = Corrected(profile=forget(given))
    else:
        read, skipped = read_learning_runs(given, runs, source=source)
        held = check_learning(given, read, progress=progress) if check else None
        corrected = learn(given, read, progress=progress) if out is not None else given
        found = Corrected(profile=corrected, skipped=skipped, held_back=held)
    if out is not None:
        save_profile(found.profile, out)
    return found
