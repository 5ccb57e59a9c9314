"""What a user may not read is named in a line, and the other runs are seen: for every file and folder of a run."""

import ctypes
import json
import subprocess
import sys
import tarfile
from typing import Any

from test_damage import OLD, finished_run, names_of_run_files

from xlstm.run.directory import Workspace

DENIED = """
import json, sys
from pathlib import Path
from typer.testing import CliRunner
from orchestrator.cli import app
run, *paths = sys.argv[1:]
for path in map(Path, paths):
    mode = path.stat().st_mode
    path.chmod(0)
    said = {}
    for verb in ("status --json", "status", "plan old", "cancel old", f"logs {run}", f"diff {run} {run}"):
        result = CliRunner().invoke(app, verb.split())
        ended = result.exception is None or isinstance(result.exception, SystemExit)
        said[verb] = [result.exit_code, result.stdout, result.stderr if ended else repr(result.exception), ended]
    path.chmod(mode)
    print(json.dumps([str(path), said]))
"""


def give_up_roots_rights() -> None:
    """Between fork and exec: what follows may read what its mode says, and no more, even as root."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, from the bounding set: PR_CAPBSET_DROP
        libc.prctl(24, capability, 0, 0, 0)


def test_what_may_not_be_read_is_named_and_stops_nobody(scaling: Any) -> None:
    folder = scaling.workspace.parent
    with tarfile.open(OLD / "workspace.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    workspace = Workspace(scaling.workspace)
    run, sweep = finished_run(workspace), workspace.sweep("old")
    names = [name for name in names_of_run_files() if name.endswith(".json") or name == "metrics.jsonl"]
    damaged = [*(run.path / name for name in names), run.path, run.attempts, run.evaluations]
    damaged += [sweep.plan_file, sweep.sweep_file]
    command = [sys.executable, "-c", DENIED, run.run_id, *map(str, damaged)]
    done = subprocess.run(
        command, cwd=OLD.parents[2], capture_output=True, text=True, timeout=500, preexec_fn=give_up_roots_rights
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(damaged)
    for path, said in lines:
        for verb, (code, out, err, ended) in said.items():
            assert ended, (path, verb, err)
            assert code in (0, 2), (path, verb, out, err)
            assert "Traceback" not in out + err, (path, verb)
        shown = {sweep["sweep"]: sweep["runs"] for sweep in json.loads(said["status --json"][1])}
        assert {"troubled", "interrupted"} <= shown.keys(), path
        assert "old" in shown or path == str(sweep.plan_file)
    said = dict(lines)
    for name in ("result.json", "spec.json"):
        texts = "".join(out + err for _, out, err, _ in said[str(run.path / name)].values())
        assert f"{run.path / name}: cannot be read (Permission denied); make it readable" in texts
