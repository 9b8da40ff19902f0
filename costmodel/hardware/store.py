"""Reading and writing profiles by name or path. Shipped ones lie in `costmodel/data/hardware`."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from costmodel.errors import ProfileError, UsageError
from costmodel.files import write_whole
from costmodel.hardware.schema import FORMAT_VERSION, HardwareProfile
from costmodel.hardware.transfer import as_fast_as_its_own_streams, transfer_fit

__all__ = ["SHIPPED", "list_profiles", "load_profile", "profile_file_name", "save_profile"]

SHIPPED = Path(__file__).resolve().parent.parent / "data" / "hardware"
"""Folder of the profiles that come with the project."""
_REMEDY = "write it anew with `foreshard calibrate` or `foreshard hardware import`"


def profile_file_name(name: str) -> str:
    """File name of a profile: its name in lower case, anything but letters, digits and dots as '-'."""
    return "".join(c if c.isalnum() or c == "." else "-" for c in name.lower()).strip("-") + ".json"


def list_profiles() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(_shipped())


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """A shipped profile by name or alias (letter case and '-', '_', ' ' count the same), or a file.

    Raises UsageError on a name that is neither, ProfileError on a file that is truncated, invalid or
    written by a newer version.
    """
    text = str(name_or_path)
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix == ".json" or os.sep in text:
        return _read(path)
    files = _aliases()
    if (file := files.get(_key(text))) is not None:
        return _read(SHIPPED / file)
    if path.is_file():
        return _read(path)
    raise UsageError(
        f"unknown hardware {text!r}: neither a file nor a shipped profile; there are: "
        f"{', '.join(list_profiles())}"
    )


def save_profile(profile: HardwareProfile, path: Path, *, force: bool = True) -> Path:
    """Write the profile whole or not at all. ProfileError where the file is there and `force` is not set."""
    if path.exists() and not force:
        raise ProfileError(f"{path} is there already; pass --force to overwrite it or choose another name")
    text = json.dumps(profile.model_dump(mode="json", exclude_defaults=True) | _always(profile), indent=None)
    text = text.replace('}, {"kind"', '},\n{"kind"') + "\n"
    write_whole(path, text)
    if path.parent == SHIPPED:
        _shipped.cache_clear()
        _aliases.cache_clear()
        _parsed.cache_clear()
        _resolved.cache_clear()
    return path


def _always(profile: HardwareProfile) -> dict[str, object]:
    return {"format_version": profile.format_version}


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c not in " -_")


@lru_cache(maxsize=1)
def _shipped() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name -> (file, aliases) of each shipped profile, read without validating the fits."""
    found = {}
    for path in sorted(SHIPPED.glob("*.json")):
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found[str(data["name"])] = (path.name, tuple(data.get("aliases", ())))
        except (ValueError, KeyError, TypeError):
            found[path.stem] = (path.name, ())  # named on use, with what is wrong
    return found


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    """Every spelling -> file name; a profile's own name counts before another's alias."""
    files = {_key(alias): file for file, aliases in _shipped().values() for alias in aliases}
    return files | {_key(name): file for name, (file, _) in _shipped().items()}


def _read(path: Path) -> HardwareProfile:
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise ProfileError(
            f"profile {path}: no such file; {_REMEDY}, or see `foreshard hardware list`"
        ) from None
    except OSError as error:
        raise ProfileError(f"profile {path}: {error.strerror}; check the path and its permissions") from error
    return _resolved(path.resolve(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=16)
def _resolved(path: Path, modified_ns: int, size_bytes: int) -> HardwareProfile:
    profile = _parsed(path, modified_ns, size_bytes)
    return _with_borrowed(profile, path) if profile.borrowed else profile


@lru_cache(maxsize=64)
def _parsed(path: Path, _modified_ns: int, _size_bytes: int) -> HardwareProfile:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {path}: cannot be read ({error}); {_REMEDY}") from error
    except ValueError as error:
        raise ProfileError(f"profile {path}: truncated or not JSON ({error}); {_REMEDY}") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise ProfileError(f"profile {path}: has no format_version, so it is no hardware profile; {_REMEDY}")
    if version > FORMAT_VERSION:
        raise ProfileError(
            f"profile {path}: format_version {version} is newer than {FORMAT_VERSION}, "
            "the newest that is read here; update foreshard"
        )
    try:
        return HardwareProfile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ProfileError(
            f"profile {path}: {error.error_count()} fields break the format, "
            f"first {place!r}: {first['msg']}; {_REMEDY}"
        ) from error


def _with_borrowed(profile: HardwareProfile, path: Path) -> HardwareProfile:
    """The profile with the fits of its donors, transferred; donors lie beside it or are shipped."""
    fits = list(profile.operators)
    donors: dict[str, HardwareProfile] = {}
    for name in dict.fromkeys(entry.donor for entry in profile.borrowed):
        places = [folder / profile_file_name(name) for folder in (path.parent, SHIPPED)]
        place = next((p for p in places if p.is_file()), None)
        if place is None:
            raise ProfileError(
                f"profile {path}: borrows fits of {name}, whose profile is not at {places[0]}; "
                "keep the files of one import together, or import the tables anew"
            )
        stat = place.stat()
        donor = _parsed(place.resolve(), stat.st_mtime_ns, stat.st_size)
        donors[donor.name] = donor
        own = {
            (f.kind, f.variant, f.dtype, f.timing): f for f in donor.operators if f.transferred_from is None
        }
        for entry in profile.borrowed:
            if entry.donor != name:
                continue
            fit = own.get((entry.kind, entry.variant, entry.dtype, entry.timing))
            if fit is None:
                raise ProfileError(
                    f"profile {path}: borrows {entry.kind} {entry.variant} {entry.dtype} {entry.timing} "
                    f"of {name}, which {place} does not hold; import the tables anew"
                )
            fits.append(transfer_fit(fit, donor.device, profile.device))
    fits = [as_fast_as_its_own_streams(fit, fits, donors) for fit in fits]
    return profile.model_copy(update={"operators": tuple(fits), "borrowed": ()})
