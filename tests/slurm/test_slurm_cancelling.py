"""`scaling cancel` on Slurm: a trunk and its forks end together, whether they wait or train."""

from pathlib import Path

import pytest
from cluster import Cluster
from tiny_runs import last_step, story
from waiting import wait_until

from orchestrator import Sweep
from orchestrator.workbench.cancel import cancel
from xlstm.run.directory import Workspace
from xlstm.run.records import State

pytestmark = [pytest.mark.serial, pytest.mark.slow]


def test_a_trunk_and_its_forks_are_cancelled_in_the_queue_and_while_the_trunk_trains(
    cluster: Cluster, workspace: Workspace, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(" ".join(f"{i} squared is {i * i};" for i in range(4000)))
    sweep = Sweep.from_dict(
        {
            "name": "trunk",
            "data": {"corpus": f"text:{corpus}", "context_length": 32},
            "sizes": {"tiny": {"llama": {"embedding_dim": 32, "num_blocks": 2, "num_heads": 2}}},
            "grid": {"model": "llama", "size": "tiny", "tokens": [512_000_000, 768_000_000, 1_024_000_000]},
            "train": {
                "batch_sequences": 8,
                "learning_rate": 1e-2,
                "warmup_steps": 2,
                "schedule": "wsd",
                "decay_fraction": 0.2,
            },
            "resources": [{"set": {"device": "cpu", "log_every": 1}}],
            "evaluation": {"sequences": 16},
        }
    )
    plan = sweep.plan(workspace.root)
    trunk, *forks = (workspace.run(run.run_id) for run in plan.runs)
    assert [run.share.fork is not None for run in plan.runs] == [False, True, True]

    cluster.command("scontrol", "update", "partitionname=main", "state=down")
    try:
        plan.submit(on="slurm", quiet=True)
        assert {run.status().state for run in (trunk, *forks)} == {State.QUEUED}
        assert {run.run_id for run in cancel(workspace, "trunk", "trunk")} == {run.run_id for run in plan.runs}
        wait_until(lambda: not cluster.command("squeue", "--noheader").strip(), lambda: cluster.command("squeue"))
    finally:
        cluster.command("scontrol", "update", "partitionname=main", "state=up")
    assert {run.status().state for run in (trunk, *forks)} == {State.CANCELLED}

    sweep.plan(workspace.root).submit(on="slurm", quiet=True)
    wait_until(lambda: last_step(trunk) > 2, lambda: story(trunk))
    cancel(workspace, "trunk", "trunk")
    said = [(run.status().state, run.status().reason) for run in (trunk, *forks)]
    assert {state for state, _ in said} == {State.CANCELLED}, said
    # A run has ended when its supervisor says so; Slurm takes a moment longer to end the job.
    wait_until(lambda: not cluster.command("squeue", "--noheader").strip(), lambda: cluster.command("squeue"))
    assert trunk.checkpoint_steps()
    assert not any(fork.attempt_numbers() for fork in forks)
    assert cancel(workspace, "trunk", "trunk") == []
