"""`foreshard doctor`: what is here, and what to do about what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.commands.options import Json
from planner.render import print_json, print_table

if TYPE_CHECKING:
    from planner.checkup import Finding

__all__ = ["command"]


def command(json: Json = False) -> None:
    """Look at devices, backends, threads and noise: OK, WARN or FAIL with a remedy for each.

    Exits 3 where something is FAIL.
    """
    from costmodel.errors import CheckFailed
    from planner.checkup import examine

    findings: list[Finding] = examine()
    if json:
        print_json({"findings": [f.to_dict() for f in findings]})
    else:
        print_table(
            ["check", "verdict", "found", "remedy"],
            [[f.check, f.verdict, f.found, f.remedy] for f in findings],
        )
    failed = [f.check for f in findings if f.verdict == "FAIL"]
    if failed:
        raise CheckFailed(f"doctor: {', '.join(failed)} failed; the remedies are in the table")
