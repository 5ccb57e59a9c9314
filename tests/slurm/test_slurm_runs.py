"""Runs on a real Slurm of two nodes end as they do here, whatever happens to their jobs."""

import pytest
from cluster import Cluster
from tiny_runs import job, losses, make_run, wait_for
from waiting import wait_until

from orchestrator.executors.local import LocalExecutor
from slurm.executor import SlurmExecutor
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import TokenFrequency
from xlstm.run.records import State

pytestmark = [pytest.mark.serial, pytest.mark.slow]


def test_two_nodes_of_slurm_train_what_two_ranks_train_here_bit_for_bit(cluster: Cluster, workspace: Workspace) -> None:
    there = make_run(workspace, nodes=2)
    SlurmExecutor(workspace, "sweep").submit([job(there)])
    here = make_run(Workspace(workspace.root.with_name("here")), devices=2)
    asked = TokenFrequency(name="rare", bands=(1, 100, 1000))
    here.create(here.spec().model_copy(update={"evaluations": (asked,)}))
    local = LocalExecutor()
    handles = local.submit([job(here)])
    wait_for(here, State.COMPLETED)
    wait_for(there, State.COMPLETED)
    local.poll(handles)
    assert losses(there) == losses(here)
    mine, theirs = here.result(), there.result()
    assert mine is not None
    assert theirs is not None
    assert theirs.validation == mine.validation

    # An evaluation asked for later, when the job that trained has left the queue, is an attempt that trains nothing,
    # and leaves the file of one asked for at once.
    wait_until(lambda: not SlurmExecutor(workspace, "sweep").alive())
    there.create(there.spec().model_copy(update={"evaluations": (asked,)}))
    SlurmExecutor(workspace, "sweep").submit([job(there)])
    wait_until(lambda: not there.unmeasured(there.spec()))
    wait_for(there, State.COMPLETED)
    files = [run.measured_file(asked, run.spec()).read_text() for run in (here, there)]
    assert files[0] == files[1]
    assert losses(there) == losses(here)
