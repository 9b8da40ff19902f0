"""What-if studies: other counts, devices, speeds, sizes and prices; what limits, and what would help."""

from planner.whatif.crossovers import Curve, crossovers, curves
from planner.whatif.elasticity import Elasticity, arc_elasticities, elasticities
from planner.whatif.levers import LEVERS, scaled
from planner.whatif.scaling import ScalingPoint, parse_axes, scaling, split_counts, split_names
from planner.whatif.study import Study, run_study
from planner.whatif.sweep import Setting, backend, best_plan, forecast_all, forecaster_of
from planner.whatif.terms import TERMS, Crossover, terms_s

__all__ = [
    "LEVERS",
    "TERMS",
    "Crossover",
    "Curve",
    "Elasticity",
    "ScalingPoint",
    "Setting",
    "Study",
    "arc_elasticities",
    "backend",
    "best_plan",
    "crossovers",
    "curves",
    "elasticities",
    "forecast_all",
    "forecaster_of",
    "parse_axes",
    "run_study",
    "scaled",
    "scaling",
    "split_counts",
    "split_names",
    "terms_s",
]
