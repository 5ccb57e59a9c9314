"""Tiny runs for the cluster: a small Llama on a text of its own, planned, with its data prepared."""

import os
import uuid
from pathlib import Path
from typing import Any

from waiting import wait_until

from xlstm.data import declare, prepare
from xlstm.models.configs import LlamaConfig
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.executor import Job
from xlstm.run.records import Fork, State
from xlstm.run.spec import Evaluation, Execution, Optimizer, Physics, RunSpec, Schedule

CONTEXT, SEQUENCES = 32, 8
BATCH = CONTEXT * SEQUENCES


def make_run(
    workspace: Workspace,
    *,
    steps: int = 20,
    seed: int = 0,
    schedule: Schedule | None = None,
    width: int = 32,
    **execution: Any,
) -> RunDirectory:
    """A planned run. Wider ones take longer: width 256 makes about ten steps a second."""
    text = workspace.root / "corpus.txt"
    if not text.exists():
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(" ".join(f"{i} squared is {i * i}; " + "ab" * (i % 7) for i in range(4000)))
    declared, vocabulary = declare("text", "bytes", CONTEXT, (str(text),))
    prepare(declared, (str(text),), workspace)
    execution = {"device": "cpu", "threads_per_rank": 1, "log_every": 1, "checkpoint_every": 5} | execution
    spec = RunSpec(
        physics=Physics(
            model=LlamaConfig(vocab_size=vocabulary, embedding_dim=width, num_blocks=2, num_heads=2),
            data=declared,
            tokens=steps * BATCH,
            batch_tokens=BATCH,
            optimizer=Optimizer(learning_rate=1e-2),
            schedule=schedule or Schedule(warmup_steps=3),
            seed=seed,
        ),
        execution=Execution(**execution, data_paths=(str(text),)),
        evaluation=Evaluation(sequences=32),
    )
    run = workspace.run(spec.run_id)
    run.create(spec)
    return run


def job(run: RunDirectory, *, fork: Fork | None = None, checkpoint_at: tuple[int, ...] = ()) -> Job:
    """The run as the planner hands it to an executor."""
    return Job(run=run, spec=run.spec(), token=uuid.uuid4().hex, fork=fork, checkpoint_at=checkpoint_at)


def losses(run: RunDirectory) -> list[tuple[int, float]]:
    """(step, training loss) of the surviving rows."""
    return [(row["step"], row["train/loss"]) for row in run.metrics() if "train/loss" in row]


def last_step(run: RunDirectory) -> int:
    """Step of the last row of metrics; 0 before the first."""
    return max((row["step"] for row in run.metrics()), default=0)


def story(run: RunDirectory) -> str:
    """All that a failed test needs to show of a run."""
    folder = run.path.parent.parent / "sweeps"
    logs = [*sorted(folder.glob("*/slurm/*/*.log")), *sorted(run.path.glob("attempts/*/*.log"))]
    texts = [f"--- {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs]
    return "\n".join([str(run.status()), *texts])


def wait_for(run: RunDirectory, *states: State) -> None:
    """Wait until the run is in one of the states."""
    wait_until(lambda: run.status().state in states, lambda: story(run))


def processes_of(workspace: Workspace) -> list[str]:
    """Command lines of all processes that name the workspace, other than this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(workspace.root) in line:
                found.append(line)
    return found
