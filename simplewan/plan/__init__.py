"""Arithmetic about a run before it starts: steps, epochs, when it saves and validates, and what it takes on disk.

Pure functions of numbers: no files, no torch. Used by training and by everything that shows a plan before it is run.
"""

from simplewan.plan.disk import latents_bytes
from simplewan.plan.steps import RunPlan, plan_run
from simplewan.plan.turns import TrainingTurns

__all__ = ["RunPlan", "TrainingTurns", "latents_bytes", "plan_run"]
