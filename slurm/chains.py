"""Runs as jobs with dependencies: a run that others fork from becomes a chain of jobs, cut at its fork points.

Each fork then waits for its own checkpoint only, and nobody has to be alive to release it: the dependency is Slurm's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slurm.batches import Part
from xlstm.run.executor import Job


@dataclass(frozen=True)
class Link:
    """One job to submit: its part of a run, and the (run_id, step) of the checkpoint that must be there before."""

    job: Job
    part: Part
    after: tuple[str, int] | None = None


def links(jobs: Sequence[Job], promised: Mapping[tuple[str, int], str]) -> list[Link]:
    """All jobs of a submission, each after those it depends on.

    `promised` are checkpoints that jobs of earlier submissions will leave. A fork whose checkpoint is there needs no
    dependency; one whose checkpoint nobody will leave is a ValueError.
    """
    submitted = {job.run.run_id: job for job in jobs}
    return _in_order([link for job in jobs for link in _chain(job, _first_dependency(job, submitted, promised))])


def _first_dependency(
    job: Job, submitted: Mapping[str, Job], promised: Mapping[tuple[str, int], str]
) -> tuple[str, int] | None:
    if job.fork is None or job.run.checkpoint_steps():
        return None
    trunk, step = job.fork.run_id, job.fork.step
    if job.run.workspace.run(trunk).has_checkpoint(step):
        return None
    if (trunk, step) in promised or (trunk in submitted and step in submitted[trunk].checkpoint_at):
        return trunk, step
    raise ValueError(
        f"{job.run.run_id} starts from the checkpoint of {trunk} at step {step}, which is neither there nor on its "
        f"way; submit {trunk} with it"
    )


def _chain(job: Job, first: tuple[str, int] | None) -> list[Link]:
    """The run's jobs: one up to each fork point whose checkpoint is not there yet, and one to the end."""
    last = job.spec.physics.steps
    cuts = [step for step in sorted(set(job.checkpoint_at)) if step < last and not job.run.has_checkpoint(step)]
    chain, after = [], first
    for number, until in enumerate([*cuts, None]):
        part = Part(
            run_id=job.run.run_id,
            token=f"{job.token}.{number}",
            fork=job.fork,
            checkpoint_at=job.checkpoint_at,
            until=until,
        )
        chain.append(Link(job, part, after))
        after = (job.run.run_id, until) if until is not None else None
    return chain


def _in_order(chained: Sequence[Link]) -> list[Link]:
    """Dependencies first; otherwise as submitted."""
    left = {(link.part.run_id, link.part.until) for link in chained}
    waiting, ordered = list(chained), []
    while waiting:
        ready = [link for link in waiting if link.after not in left]
        assert ready, "forks cannot form a circle: each starts earlier than it ends"
        ordered += ready
        left -= {(link.part.run_id, link.part.until) for link in ready}
        waiting = [link for link in waiting if link not in ready]
    return ordered
