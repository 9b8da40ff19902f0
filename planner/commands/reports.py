"""Printing a validation report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from planner.render import percent, print_table

if TYPE_CHECKING:
    from planner.validation.scoring import Report

__all__ = ["show_report"]

_WORST = 10
_NAMED = 3
"""Rows named beside the reason that left them out."""


def show_report(report: Report) -> None:
    """Summary rows, the worst rows, and why rows were skipped."""
    print_table(
        ["by", "key", "n", "skipped", "MAPE", "median", "p90", "bias", "tau", "regret", "coverage"],
        [
            [
                s.by,
                s.key,
                str(s.n),
                str(s.n_skipped),
                percent(s.mape),
                percent(s.median_ape),
                percent(s.p90_ape),
                percent(s.bias, sign=True),
                "-" if s.kendall_tau is None else f"{s.kendall_tau:.2f}",
                percent(s.top1_regret),
                percent(s.interval_coverage),
            ]
            for s in report.summary
        ],
    )
    if (table := report.details.get("reliability")) and table["overall"]["n_pairs"]:
        _show_reliability(table["overall"])
    scored = [row for row in report.rows if row.skipped is None]
    few = len(scored) <= 4 * _WORST
    shown = scored if few else sorted(scored, key=lambda r: -abs(r.error))[:_WORST]
    print_table(
        ["row", "group", "metric", "measured", "predicted", "90 % interval", "error"],
        [
            [
                r.id,
                r.group,
                r.metric,
                f"{r.measured:.4g}",
                f"{r.predicted:.4g}",
                "-" if r.low is None or r.high is None else f"{r.low:.4g} .. {r.high:.4g}",
                percent(r.error, sign=True),
            ]
            for r in shown
        ],
        title="rows" if few else "worst rows",
    )
    reasons: dict[str, list[str]] = {}
    for row in report.rows:
        if row.skipped is not None:
            reasons.setdefault(row.skipped, []).append(row.id)
    if reasons:
        print_table(
            ["skipped because", "rows", "which"],
            [
                [reason, str(len(ids)), ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")]
                for reason, ids in sorted(reasons.items(), key=lambda item: -len(item[1]))
            ],
        )


def _show_reliability(table: Mapping[str, Any]) -> None:
    """Deciles of P(the first plan of a pair is faster) and how often it was."""
    print_table(
        ["P(A faster than B)", "pairs", "mean P", "A was faster"],
        [
            [
                f"{percent(b['low'])} .. {percent(b['high'])}",
                str(b["n"]),
                percent(b["mean_probability"]),
                percent(b["share_shorter"]),
            ]
            for b in table["bins"]
        ],
        title=f"{table['n_pairs']} pairs of plans of one problem",
    )
