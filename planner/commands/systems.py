"""`foreshard systems`: the parallel systems that can be named, their source and their check."""

from __future__ import annotations

from planner.commands.options import Json

__all__ = ["command"]


def command(json: Json = False) -> None:
    """List the systems of the project's table: what to type, what is modelled, source and check."""
    from costmodel.systems import systems
    from planner.render import print_json, print_table

    rows = systems()
    if json:
        print_json([row.to_dict() for row in rows])
        return
    print_table(
        ["#", "system", "how to name it", "source", "check"],
        [[str(r.number), r.name, r.how, r.source, r.check] for r in rows],
    )
