"""How the experts of a run share its steps where the options leave it open, and what is said of it."""

from __future__ import annotations

from simplewan.app.context import Context
from simplewan.app.gathering import Gathered
from simplewan.app.roles import boundary, make_objective, sigma_bounds
from simplewan.app.validating import count_shifts
from simplewan.flavours import EXPERT_SUBFOLDER, HIGH, LOW
from simplewan.objectives.flow import share_above
from simplewan.plan import TrainingTurns


def natural_share(context: Context, gathered: Gathered) -> float:
    """The share of the training timesteps that are the high-noise expert's, of those that are trained at all.

    The shift may follow the size of a clip: then it is the mean over the samples.
    """
    objective, edge = make_objective(context), boundary(context)
    assert edge is not None
    lowest, highest = sigma_bounds(context, LOW)[0], sigma_bounds(context, HIGH)[1]
    counts = count_shifts(context, objective, gathered)
    total = 0.0
    for shift, count in counts.items():
        above = {
            sigma: share_above(sigma, sampling=objective.sampling, shift=shift) for sigma in (lowest, edge, highest)
        }
        total += count * (above[edge] - above[highest]) / (above[lowest] - above[highest])
    return total / sum(counts.values())


def announce_turns(context: Context, turns: TrainingTurns, steps: dict[str, int]) -> None:
    """Say how many steps each of several experts takes; warn of one that takes none."""
    if len(steps) < 2:
        return
    total = sum(steps.values())
    each = ", ".join(f"{name} {count} of {total} steps" for name, count in steps.items())
    wanted = f"{100 * turns.share:.1f}% for {turns.experts[0]}"
    context.say(f"experts: {each} ({wanted}, {turns.run_steps} in a row)")
    for name in (name for name, count in steps.items() if not count):
        context.say(
            f"{EXPERT_SUBFOLDER[name]} takes no step: the run is too short for its share; a smaller expert_run_steps, "
            "expert_share or more steps give it some",
            warning=True,
        )
