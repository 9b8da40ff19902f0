"""Named strategies: words of a plan that change more of a step than its degrees and its schedule do.

One file per family. A word is registered with what it does; `Plan.parse` knows every registered word.
"""

from costmodel.strategies import inference, offload, parameter_server, placing, splitting, stages
from costmodel.strategies.registry import STRATEGIES, Strategy, chosen, is_strategy, number_of

__all__ = ["STRATEGIES", "Strategy", "chosen", "is_strategy", "number_of"]

_FAMILIES = (inference, offload, parameter_server, placing, splitting, stages)
