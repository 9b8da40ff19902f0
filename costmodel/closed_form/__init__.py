"""Step time and memory of many plans at once, in closed forms over arrays: the fast path of the search.

`units` prices what every unit of the model costs under one way of splitting it, `stages` sums units up into
pipeline stages, `step` and `memory` turn stages into times and bytes. The numbers come from the same
functions as a forecast; what the event engine decides action by action is a formula here. Two are given: a
time that no schedule of the kind can beat (what a search may skip by), and an estimate.
"""

from costmodel.closed_form.offload import SEARCHABLE
from costmodel.closed_form.space import NO_OFFLOAD, Choices, Evaluated, divisors, evaluate

__all__ = ["NO_OFFLOAD", "SEARCHABLE", "Choices", "Evaluated", "divisors", "evaluate"]
