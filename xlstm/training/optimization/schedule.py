"""The learning rate as a function of the step. Imports without torch."""

import math

from xlstm.run.spec import Physics


def learning_rate(physics: Physics, step: int) -> float:
    """Learning rate of the update that takes the run from `step` to `step + 1`.

    Linear warm-up to the peak; then cosine (Loshchilov & Hutter 2017), or warm-up-stable-decay with a linear decay
    (Hu et al. 2024, arXiv 2404.06395), or constant. The last update is made at the floor, `final_ratio` of the peak.
    """
    schedule, peak, done = physics.schedule, physics.optimizer.learning_rate, step + 1
    if done < schedule.warmup_steps:
        return peak * done / schedule.warmup_steps
    floor = schedule.final_ratio
    if schedule.kind == "cosine":
        end = schedule.decay_steps or physics.steps
        progress = min(1.0, (done - schedule.warmup_steps) / max(1, end - schedule.warmup_steps))
        return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
    if schedule.kind == "wsd" and step >= physics.undecided_steps:
        return peak * (1 - (1 - floor) * (done - physics.undecided_steps) / (physics.steps - physics.undecided_steps))
    return peak
