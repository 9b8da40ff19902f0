"""One optimizer step: priced stages and a schedule to actions, a timeline and its breakdown."""

from costmodel.step.simulate import StepResult, simulate_step

__all__ = ["StepResult", "simulate_step"]
