"""Reading measured tables and logs that others wrote, and making profiles of them."""

from __future__ import annotations

from calibrate.importing.profiles import import_profiles

__all__ = ["import_profiles"]
