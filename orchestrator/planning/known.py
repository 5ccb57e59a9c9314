"""Runs of a sweep that a workspace knows already, under what it knows them by. Imports without torch."""

import os
from collections.abc import Sequence
from dataclasses import replace

from sweeps.expand import SweepRun
from xlstm.run.directory import Workspace
from xlstm.run.json_files import DamagedFileError
from xlstm.run.spec import RunSpec, same_training


def as_submitted(runs: Sequence[SweepRun], workspace: Workspace, name: str) -> Sequence[SweepRun]:
    """The runs as an earlier version made them, all of them, where the sweep was submitted then; else as they are.

    A sweep goes on as it began: a default that is another since would give its losses two meanings.
    """
    earlier, directory = {run.earlier.run_id for run in runs if run.earlier is not None}, workspace.sweep(name)
    if not earlier or not directory.sweep_file.is_file():
        return runs
    try:
        known = {row["run_id"] for row in (directory.known_plan() or {"runs": []})["runs"]}
    except DamagedFileError:  # what it held is told by the runs themselves
        known = {run_id for run_id in earlier if workspace.run(run_id).path.is_dir()}
    if not known & earlier:
        return runs
    return [run if run.earlier is None else replace(run, spec=run.earlier) for run in runs]


def as_known(runs: Sequence[SweepRun], workspace: Workspace) -> list[SweepRun]:
    """The runs, each with the specification under whose id the same training lies in the workspace already.

    Earlier versions gave another id to a run that stated a schedule's default: it is found, and not trained again.
    """
    missing = {run.spec.run_id.rpartition("-")[0] for run in runs if not workspace.run(run.spec.run_id).path.exists()}
    if not missing or not workspace.runs.is_dir():
        return list(runs)
    known: dict[str, RunSpec] = {}
    for entry in os.scandir(workspace.runs):
        directory = workspace.run(entry.name)
        if entry.name.rpartition("-")[0] not in missing or not directory.spec_file.is_file():
            continue
        text = directory.spec_file.read_text(errors="replace")
        if '"decay_steps": null' in text and '"constant"' not in text:
            continue  # nothing is stated that could be left out
        try:
            stated = directory.spec()
        except ValueError:
            continue  # damaged: whoever asks for this run is told
        if (plain := same_training(stated)) is not stated:
            known[plain.run_id] = stated
    return [
        replace(run, spec=run.spec.with_physics(known[run.spec.run_id].physics)) if run.spec.run_id in known else run
        for run in runs
    ]
