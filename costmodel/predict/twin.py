"""A second process that answers some of a forecaster's questions, so that a search uses two cores.

It is a fork of all that the forecaster knows by then. Answers are the numbers that this process would have
computed itself, and what the other one cannot answer is computed here: results do not depend on there being
a twin.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from costmodel.errors import PlanError
from costmodel.forked import Answer, Forked

if TYPE_CHECKING:
    from costmodel.predict.forecaster import Forecaster

__all__ = ["Asked", "Twin", "answers_to"]

Asked = TypeVar("Asked")

_WAITING = 2
"""Groups of questions given to the twin ahead of its answers: one in work, one so that it need not wait."""
_PATIENCE_S = 120.0
"""A twin that is silent for longer is given up."""


class Twin(Forked["Forecaster"]):
    """A copy of a forecaster in a process of its own; use it in a `with` block, whose end ends the process.

    Forked at the first question, and again at the first after `renew`. Where it is not `wanted`, or this
    process cannot fork, nothing is ever asked of it.
    """

    def __init__(self, forecaster: Forecaster, *, wanted: bool) -> None:
        super().__init__(forecaster, wanted=wanted, name="twin", silent=True, patience_s=_PATIENCE_S)

    def ask_all(self, question: Callable[[Forecaster, Any], Any], things: Sequence[Any]) -> Callable[[], Any]:
        """Put a question (a module's function) to the twin for every thing. Returns what waits for the
        answers (as of `answers_to`), or gives None where the twin has none."""
        return self.ask(_answers, (question, tuple(things)))

    def share(
        self, question: Callable[[Forecaster, Asked], Answer], groups: Sequence[Sequence[Asked]]
    ) -> list[list[Answer | PlanError]]:
        """Answers of both, group by group: the twin takes from the end while this process takes from the
        front. Things of one group share work."""
        left = deque(enumerate(groups))
        found: dict[int, list[Answer | PlanError]] = {}
        elsewhere: list[tuple[int, Callable[[], Any]]] = []
        while left:
            if self.wanted and self.n_waiting() < min(_WAITING, len(left) // 2):
                number, things = left.pop()
                elsewhere.append((number, self.ask_all(question, things)))
            else:
                number, things = left.popleft()
                found[number] = answers_to(self._held, question, things)
        for number, take in elsewhere:
            answers = take()
            found[number] = answers_to(self._held, question, groups[number]) if answers is None else answers
        return [found[number] for number in range(len(groups))]


def _answers(forecaster: Forecaster, asked: tuple[Callable[[Forecaster, Any], Any], Sequence[Any]]) -> Any:
    question, things = asked
    return answers_to(forecaster, question, things)


def answers_to(
    forecaster: Forecaster, question: Callable[[Forecaster, Asked], Answer], things: Sequence[Asked]
) -> list[Answer | PlanError]:
    """The answer for every thing, or the PlanError in its place."""
    found: list[Answer | PlanError] = []
    for thing in things:
        try:
            found.append(question(forecaster, thing))
        except PlanError as error:
            found.append(error)
    return found
