"""One optimizer step: priced stages and a schedule to actions, a timeline and its breakdown."""

from costmodel.step.options import Offload, Options
from costmodel.step.simulate import StepResult, simulate_order, simulate_step

__all__ = ["Offload", "Options", "StepResult", "simulate_order", "simulate_step"]
