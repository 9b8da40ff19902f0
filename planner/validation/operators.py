"""Predicted against measured operators: the rows of an operator table, each on the profile of its GPU.

A row is predicted in its own way of timing. With `cross_validate` nothing shipped is used: each group of
rows is refitted by folds, and a row is scored by a fit that saw no row of its shape. With `transfer` each
GPU's rows are scored as if it had never been measured: by the fits of the table's other GPUs, carried over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from calibrate.fitting.operators import cross_validate as cross_validate_group
from calibrate.fitting.operators import fitting_groups
from calibrate.importing.operator_tables import OperatorTables, read_operator_tables
from calibrate.importing.profiles import fit_tables
from calibrate.samples import SampleGroup, SampleTable
from costmodel.errors import ForeshardError, UsageError
from costmodel.estimate import TimeEstimate
from costmodel.hardware.datasheets import find_datasheet
from costmodel.hardware.forms.base import load_forms
from costmodel.hardware.pricing import choose_fit, operator_times
from costmodel.hardware.schema import HardwareProfile
from costmodel.hardware.store import load_profile
from costmodel.hardware.transfer import borrowed_fits, transfer_fit
from planner.validation.scoring import Report, ScoredRow

__all__ = ["score_group", "validate_operators"]

_METRIC = "latency_us"
"""The tables' own column: microseconds."""
_US = 1e6
_BY = ("source", "gpu", "kind", "dtype", "timing", "gpu/kind/dtype")
_WORST = 20


def validate_operators(path: Path, *, cross_validate: bool = False, transfer: bool = False) -> Report:
    """Score every row of an operator table; rows that cannot be priced say why.

    Details: `worst` (the rows furthest off), `problems` (malformed lines by file and line), `donors` (with
    `transfer`: GPU and operator -> whose fit was carried over). Raises InputFileError where the file is no
    operator table, UsageError where both ways of refitting are asked for.
    """
    if cross_validate and transfer:
        raise UsageError("--cross-validate and --transfer refit in different ways; choose one")
    tables = read_operator_tables([path])
    donors: dict[str, str] = {}
    rows = list(_transferred(path, tables, donors) if transfer else _scored(tables, cross_validate))
    rows += [
        ScoredRow(id=row_id, source=source, metric=_METRIC, measured=None, skipped=reason)
        for row_id, source, reason in tables.skipped
    ]
    rows.sort(key=lambda row: (0, int(row.id), "") if row.id.isdigit() else (1, 0, row.id))
    scored = sorted((r for r in rows if r.skipped is None), key=lambda r: -abs(np.log1p(r.error)))
    worst = [{**row.to_dict(), **row.labels} for row in scored[:_WORST]]
    mode = "cross-validated" if cross_validate else "other GPUs' fits" if transfer else "shipped profiles"
    details = {"mode": mode, "worst": worst, "problems": list(tables.problems)}
    return Report.of(rows, by=_BY, details=details | ({"donors": donors} if transfer else {}))


def _scored(tables: OperatorTables, cross_validate: bool) -> Iterable[ScoredRow]:
    for table in tables.tables.values():
        known = table.kind in load_forms()
        for group, rows in fitting_groups(table) if cross_validate and known else table.groups():
            yield from score_group(group, rows, cross_validate=cross_validate)


def _transferred(path: Path, tables: OperatorTables, donors: dict[str, str]) -> Iterable[ScoredRow]:
    """Rows priced by what the table's other GPUs lend, chosen as for a GPU without samples."""
    profiles = [
        HardwareProfile(name=name, created="", source=path.name, device=sheet.device, operators=tuple(fits))
        for name, fits in fit_tables([path]).items()
        if (sheet := find_datasheet(name)) is not None
    ]
    by_name = {profile.name: profile for profile in profiles}
    for table in tables.tables.values():
        for group, rows in table.groups():
            target = by_name.get(_canonical(group.device))
            if target is None:
                reason = f"no form prices operators of kind {table.kind!r}"
                yield from (_row(rows, i, group, skipped=reason) for i in range(len(rows)))
                continue
            lent = _without_own_samples(target, profiles, group.timing)
            fit = choose_fit(lent, table.kind, group.variant, group.dtype, group.timing)
            if fit is None or (fit.kind, fit.dtype, fit.timing) != (table.kind, group.dtype, group.timing):
                reason = f"no other GPU of the table has {group.dtype} {table.kind} timed by {group.timing}"
                yield from (_row(rows, i, group, skipped=reason) for i in range(len(rows)))
                continue
            donors[f"{target.name}/{table.kind}/{group.variant}/{group.dtype}"] = str(fit.transferred_from)
            yield from _priced(lent, group, rows)


def _without_own_samples(
    target: HardwareProfile, profiles: Sequence[HardwareProfile], timing: str
) -> HardwareProfile:
    """The profile of `target` had it no samples, out of what the others timed the same way."""
    same = [
        profile.model_copy(update={"operators": tuple(f for f in profile.operators if f.timing == timing)})
        for profile in profiles
    ]
    by_name = {profile.name: profile for profile in same}
    borrowed = []
    for entry in borrowed_fits(target.device, (), same):
        donor = by_name[entry.donor]
        own = next(
            fit
            for fit in donor.operators
            if (fit.kind, fit.variant, fit.dtype, fit.timing)
            == (entry.kind, entry.variant, entry.dtype, entry.timing)
        )
        borrowed.append(transfer_fit(own, donor.device, target.device))
    return target.model_copy(update={"operators": tuple(borrowed)})


def _canonical(name: str) -> str:
    sheet = find_datasheet(name)
    return name if sheet is None else sheet.device.name


def score_group(group: SampleGroup, table: SampleTable, *, cross_validate: bool) -> list[ScoredRow]:
    """Scored rows of one (device, variant, dtype, timing), or of variants that are fitted together."""
    try:
        if not cross_validate:
            return _priced(load_profile(group.device), group, table)
        estimate = _cross_validated(group, table)
    except ForeshardError as error:
        return [_row(table, i, group, skipped=str(error)) for i in range(len(table))]
    return _rows(estimate, group, table)


def _priced(profile: HardwareProfile, group: SampleGroup, table: SampleTable) -> list[ScoredRow]:
    return _rows(_by_profile(profile, group, table), group, table)


def _rows(estimate: TimeEstimate, group: SampleGroup, table: SampleTable) -> list[ScoredRow]:
    low, high = estimate.low_s, estimate.high_s
    return [
        _row(table, i, group, predicted=(estimate.median_s[i] * _US, low[i] * _US, high[i] * _US))
        for i in range(len(table))
    ]


def _cross_validated(group: SampleGroup, table: SampleTable) -> TimeEstimate:
    sheet = find_datasheet(group.device)
    if sheet is None:
        raise UsageError(f"no datasheet of {group.device!r}; add it to the datasheet file")
    if table.kind not in load_forms():
        raise UsageError(f"no form prices operators of kind {table.kind!r}")
    if int(table.shape_ids().max()) == 0:
        raise UsageError("only one shape of its group: nothing to fit it from")
    check = cross_validate_group(table, sheet.device)
    return TimeEstimate(median_s=check.median_s, log_sigma=check.log_sigma)


def _by_profile(profile: HardwareProfile, group: SampleGroup, table: SampleTable) -> TimeEstimate:
    median_s = np.empty(len(table))
    log_sigma = np.empty(len(table))
    for framework in np.unique(table.framework):
        index = np.flatnonzero(table.framework == framework)
        part = operator_times(
            profile,
            table.kind,
            group.variant,
            group.dtype,
            {name: values[index] for name, values in table.dims.items()},
            group.timing,
            framework=str(framework),
        )
        median_s[index] = part.median_s
        log_sigma[index] = part.log_sigma
    return TimeEstimate(median_s=median_s, log_sigma=log_sigma)


def _row(
    table: SampleTable,
    index: int,
    group: SampleGroup,
    *,
    predicted: tuple[float, float, float] | None = None,
    skipped: str | None = None,
) -> ScoredRow:
    shape = ",".join(f"{name}={values[index]:g}" for name, values in table.dims.items())
    median, low, high = map(float, predicted) if predicted else (None, None, None)
    return ScoredRow(
        id=str(table.row_id[index]),
        source=str(table.source[index]),
        metric=_METRIC,
        measured=float(table.time_s[index]) * _US,
        predicted=median,
        low=low,
        high=high,
        skipped=skipped,
        labels={
            "gpu": group.device,
            "kind": table.kind,
            "dtype": group.dtype,
            "timing": group.timing,
            "variant": str(table.variant[index]),
            "gpu/kind/dtype": f"{group.device}/{table.kind}/{group.dtype}",
            "shape": shape,
        },
    )
