"""From measured tables to profiles: one per device in them, and by transfer one per known datasheet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

from calibrate.fitting.operators import fit_operator, fitting_groups
from calibrate.importing.collective_tables import CollectiveTable
from calibrate.importing.collectives import read_collectives
from calibrate.importing.networks import fit_network, import_network
from calibrate.importing.operator_tables import read_operator_tables
from calibrate.samples import SampleTable
from costmodel.errors import InputFileError, UsageError
from costmodel.hardware.cores import usable_cores
from costmodel.hardware.datasheets import Datasheet, datasheets, find_datasheet
from costmodel.hardware.forms.base import load_forms
from costmodel.hardware.network_schema import NetworkModel
from costmodel.hardware.schema import DeviceSpec, HardwareProfile, OperatorFit
from costmodel.hardware.store import profile_file_name, save_profile
from costmodel.hardware.transfer import borrowed_fits

__all__ = ["fit_tables", "import_profiles"]

_MOST_WORKERS = 8
_ROWS_WORTH_WORKERS = 5000


def import_profiles(
    *,
    operators: Sequence[Path] = (),
    collectives: Sequence[Path] = (),
    out_dir: Path,
    gpus: Sequence[str] | None = None,
    force: bool = False,
    transfer: bool = False,
    on_problem: Callable[[str], None] | None = None,
) -> list[Path]:
    """Fit tables (of collectives also logs of nccl-tests) and write one profile per device into `out_dir`;
    returns the files written.

    `gpus`: only these; a single one is also that of logs that name none. `transfer`: also write every device
    of the datasheet file, and let each device borrow fits of its nearest measured one for the kinds it was
    not measured on; with `gpus`, those and the devices they borrow from. `on_problem` is told of each line
    that was left out: file, line and why. Raises InputFileError on a table
    that is none, on devices without a datasheet and on `gpus` that no row is of, ProfileError where a file is
    there without `force`.
    """
    measured = None if transfer else gpus  # any row may be of a device to borrow from
    fits = fit_tables(operators, measured, on_problem=on_problem)
    gpu = gpus[0] if gpus is not None and len(gpus) == 1 else ""
    table = read_collectives(collectives, gpu=gpu) if collectives else None
    _tell(table.problems if table is not None else (), on_problem)
    networks = _networks(table, measured)
    created = datetime.now(UTC).strftime("%Y-%m-%d")
    networks = {_canonical(name): network for name, network in networks.items()}
    wanted = {name: find_datasheet(name) for name in (*fits, *networks)}
    unknown = sorted(name for name, sheet in wanted.items() if sheet is None)
    if unknown:
        raise _no_datasheet(", ".join(unknown))
    sheets: dict[str, Datasheet] = {s.device.name: s for s in wanted.values() if s is not None}
    if transfer:
        sheets |= datasheets()
    asked = None if gpus is None else {_canonical(name) for name in gpus}
    if absent := sorted((asked or set()) - set(sheets)):
        raise InputFileError(
            f"--gpu {', '.join(absent)}: no row of the tables is of it; see their gpu column, or pass "
            "--transfer for a GPU that has a datasheet (`foreshard hardware list`)"
        )
    profiles = []
    for name, sheet in sheets.items():
        own = fits.get(name, [])
        profiles.append(
            HardwareProfile(
                name=name,
                aliases=sheet.aliases,
                created=created,
                source=_source(own, bool(networks.get(name))),
                device=sheet.device,
                operators=tuple(own),
                network=networks.get(name) or _nominal_network(name, table),
            )
        )
    if transfer:
        profiles = [_with_transfer(profile, profiles) for profile in profiles]
    if asked is not None:
        asked |= {entry.donor for profile in profiles if profile.name in asked for entry in profile.borrowed}
        profiles = [profile for profile in profiles if profile.name in asked]
    return [
        save_profile(profile, out_dir / profile_file_name(profile.name), force=force) for profile in profiles
    ]


def fit_tables(
    paths: Sequence[Path],
    gpus: Sequence[str] | None = None,
    *,
    on_problem: Callable[[str], None] | None = None,
) -> dict[str, list[OperatorFit]]:
    """Device name (of its datasheet, where known) -> fits of every group of its rows.

    `on_problem` is told of each line that was left out.
    """
    load_forms()
    fits: dict[str, list[OperatorFit]] = {}
    jobs: list[tuple[SampleTable, DeviceSpec]] = []
    if not paths:
        return fits
    wanted = None if gpus is None else {_canonical(name) for name in gpus}
    found = read_operator_tables(paths)
    _tell(found.problems, on_problem)
    for kind, table in found.tables.items():
        if kind not in load_forms():
            continue
        for group, rows in fitting_groups(table):
            sheet = find_datasheet(group.device)
            if sheet is None:
                raise _no_datasheet(group.device)
            if wanted is None or sheet.device.name in wanted:
                jobs.append((rows, sheet.device))
    for (_, device), fit in zip(jobs, _fit_all(jobs), strict=True):
        fits.setdefault(device.name, []).append(fit)
    return fits


def _tell(problems: Sequence[str], on_problem: Callable[[str], None] | None) -> None:
    if on_problem is not None:
        for problem in problems:
            on_problem(problem)


def _fit_all(jobs: Sequence[tuple[SampleTable, DeviceSpec]]) -> list[OperatorFit]:
    """The fit of each job, in order; on several processes where there is enough work to pay for them."""
    tables, devices = [table for table, _ in jobs], [device for _, device in jobs]
    workers = min(usable_cores(), len(jobs), _MOST_WORKERS)
    if workers < 2 or sum(map(len, tables)) < _ROWS_WORTH_WORKERS:
        return [fit_operator(table, device) for table, device in jobs]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(fit_operator, tables, devices))


def _no_datasheet(name: str) -> InputFileError:
    return InputFileError(
        f"no datasheet of {name}; add it to costmodel/data/datasheets.json, or use a name of: "
        f"{', '.join(datasheets())}"
    )


def _networks(table: CollectiveTable | None, gpus: Sequence[str] | None) -> dict[str, NetworkModel]:
    """Device name -> network fitted on its rows."""
    if table is None:
        return {}
    names = sorted({sample.device for sample in table.samples})
    wanted = None if gpus is None else {_canonical(name) for name in gpus}
    return {name: fit_network(name, table) for name in names if wanted is None or _canonical(name) in wanted}


def _canonical(name: str) -> str:
    sheet = find_datasheet(name)
    return name if sheet is None else sheet.device.name


def _with_transfer(profile: HardwareProfile, donors: Sequence[HardwareProfile]) -> HardwareProfile:
    more = borrowed_fits(profile.device, profile.operators, donors)
    return profile.model_copy(update={"borrowed": tuple(more)})


def _nominal_network(name: str, table: CollectiveTable | None) -> NetworkModel | None:
    """Links by the datasheet, paths from measured devices of the tables; None where the node is unknown."""
    try:
        return import_network(name, table)
    except UsageError:
        return None


def _source(fits: Sequence[OperatorFit], has_network: bool) -> str:
    if not fits and not has_network:
        return "datasheet, and transfer from the nearest measured device"
    names = sorted({name for fit in fits for name in fit.source.split(", ") if name})
    return "public measurements: " + (", ".join(names) or "collectives only")
