"""The one exception tree of the project. Each class owns the exit code its command ends with.

ForeshardError                  exit 1
├── UsageError                  exit 2   the request itself is wrong
│   ├── PlanError               exit 2   a plan that cannot be (degrees, divisibility, unknown token)
│   └── ModelArgumentError      exit 2   the model argument names nothing that can be built
├── ProfileError                exit 1   a hardware profile is missing, truncated, newer or invalid
├── InputFileError              exit 1   a table, log or trace file cannot be read
├── TraceError                  exit 1   the model was built but its graph cannot be taken
├── MeasurementError            exit 1   a measurement could not be taken or may not be merged
├── WorkerError                 exit 1   a rank of a real run died, hung or disagreed
└── CheckFailed                 exit 3   the command ran and its answer is "no"
    └── InfeasibleError         exit 3   no plan fits; says the nearest feasible change

A message says what (with the values), the rule, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "CheckFailed",
    "ForeshardError",
    "InfeasibleError",
    "InputFileError",
    "MeasurementError",
    "ModelArgumentError",
    "PlanError",
    "ProfileError",
    "TraceError",
    "UsageError",
    "WorkerError",
]


class ForeshardError(Exception):
    """Base of every error the user can meet; `exit_code` is what the command returns."""

    exit_code: int = 1


class UsageError(ForeshardError):
    """The request itself is wrong: an unknown name, a bad value, options that exclude each other."""

    exit_code = 2


class PlanError(UsageError):
    """A plan that cannot be: unknown token, degrees that do not multiply, sizes that do not divide."""


class ModelArgumentError(UsageError):
    """The model argument names nothing that can be built."""


class ProfileError(ForeshardError):
    """A hardware profile is missing, truncated, written by a newer version, or invalid."""


class InputFileError(ForeshardError):
    """A table, log or trace file cannot be read or lacks what is needed."""


class TraceError(ForeshardError):
    """The model was built, but its graph cannot be taken; names the operator or line that stops it."""


class MeasurementError(ForeshardError):
    """A measurement could not be taken, or measurements may not be merged."""


class WorkerError(ForeshardError):
    """A rank of a real run died, hung or disagreed with the others."""


class CheckFailed(ForeshardError):
    """The command ran to its end and its answer is "no"."""

    exit_code = 3


class InfeasibleError(CheckFailed):
    """No plan fits; the message names the nearest feasible change."""
