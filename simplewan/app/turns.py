"""How the experts of a run share its steps where the options leave it open, and what is said of it."""

from __future__ import annotations

from simplewan.app.context import Context
from simplewan.app.gathering import Gathered
from simplewan.app.roles import boundary, make_objective, sigma_bounds
from simplewan.app.validating import count_shifts
from simplewan.errors import Problem, UserError
from simplewan.flavours import HIGH, LOW
from simplewan.objectives.flow import share_within
from simplewan.plan import TrainingTurns


def natural_share(context: Context, gathered: Gathered) -> float:
    """The share of the training timesteps that are the high-noise expert's, of those that are trained at all.

    The shift may follow the size of a clip: then it is the mean over what is drawn. Raises UserError when no draw comes
    to the timesteps that are trained, as far as can be computed.
    """
    objective, edge = make_objective(context), boundary(context)
    assert edge is not None
    lowest, highest = sigma_bounds(context, LOW)[0], sigma_bounds(context, HIGH)[1]
    draws = count_shifts(context, objective, gathered)
    total = 0.0
    for shift, count in draws.items():
        high, low = (
            share_within(*bounds, sampling=objective.sampling, shift=shift)
            for bounds in ((edge, highest), (lowest, edge))
        )
        if not high + low:
            raise _nothing_to_share(objective.sampling.name, lowest, highest)
        total += count * high / (high + low)
    return total / sum(draws.values())


def _nothing_to_share(sampling: str, lowest: float, highest: float) -> UserError:
    message = (
        f"has to be set: no draw of flow_sampling {sampling} comes to the timesteps from {lowest * 1000:g} to "
        f"{highest * 1000:g}, so that they tell nothing of how the experts share the steps"
    )
    fix = "write expert_share=0.5, or sample timesteps that reach there"
    return UserError(Problem("experts", message, "expert_share", None, fix))


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
            f"the {context.flavour.called(name)} takes no step: the run is too short for its share; a smaller "
            "expert_run_steps, expert_share or more steps give it some",
            warning=True,
        )
