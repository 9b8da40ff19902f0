"""The `foreshard` command: one sub-command per file in `planner/commands/`.

Exit codes: 0 ok, 1 error, 2 usage, 3 the check failed, 130 interrupted. Results go to stdout, progress
and messages to stderr.
"""

from __future__ import annotations

import gc
import sys

import typer

from costmodel.errors import ForeshardError
from planner.commands import (
    calibrate,
    cluster,
    demo,
    doctor,
    export,
    hardware,
    infer,
    learning,
    partition,
    plan,
    predict,
    report,
    share,
    size,
    systems,
    tracing,
    validate,
    whatif,
)

__all__ = ["app", "main"]

app = typer.Typer(
    name="foreshard",
    help="How will this model run on these GPUs, split this way?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("doctor")(doctor.command)
app.command("calibrate")(calibrate.command)
hardware.app.command("learn")(learning.command)
app.add_typer(hardware.app, name="hardware")
app.command("trace")(tracing.command)
app.command("predict")(predict.command)
app.command("infer")(infer.command)
app.command("plan")(plan.command)
app.command("whatif")(whatif.command)
app.command("size")(size.command)
app.command("share")(share.command)
app.command("partition")(partition.command)
app.command("cluster")(cluster.command)
app.command("export")(export.command)
app.add_typer(validate.app, name="validate")
app.command("report")(report.command)
app.command("systems")(systems.command)
app.command("demo")(demo.command)


_OBJECTS_BETWEEN_COLLECTIONS = 200_000
"""Imports and traces make millions of objects that live as long as the process; looking for cycles among them
after every 700, as Python does by itself, takes an eighth of a search."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; every ForeshardError becomes its message and exit code, never a traceback."""
    if args is None:  # a process of its own
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    try:
        app(args=args, prog_name="foreshard")
    except ForeshardError as error:
        print(f"foreshard: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("foreshard: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None:
            raise
        path = error.filename2 or error.filename
        print(f"foreshard: {path}: {error.strerror}; give another path", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        if args is None:  # the process ends: what it made need not be searched for cycles once more
            gc.freeze()


if __name__ == "__main__":
    main()
