"""From every feasible plan to the ones to run.

`space` says which plans there are, `costmodel.closed_form` prices all of them at once, `run` checks the
promising ones with the event engine until no other can be faster, `compare` says how sure the order is and
why the losers lose, `nearest` what would have to change where nothing fits.
"""

from planner.certainty import probability_faster
from planner.search.compare import pareto_front
from planner.search.result import RankedPlan, SearchResult
from planner.search.run import search
from planner.search.space import SearchOptions

__all__ = [
    "RankedPlan",
    "SearchOptions",
    "SearchResult",
    "pareto_front",
    "probability_faster",
    "search",
]
