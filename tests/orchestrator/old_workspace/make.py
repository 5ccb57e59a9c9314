"""Makes `workspace.tar.xz`, a workspace as revision 8d2ac45 left it, and `said.json`, what that revision said of it.

In a checkout of that revision with an environment of its own:

    .venv/bin/python …/make.py EMPTY_FOLDER

Three sweeps: `old` is complete, six of its runs forked from three trunks, and has a fit; one run of `troubled` failed
and one diverged; the run of `interrupted` was stopped. What follows is carried out in a copy elsewhere: `interrupted`
goes on, and `extended` starts from a checkpoint of `old`. Of checkpoints, the archive holds those that are continued.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

HERE = Path(__file__).parent
SWEEP = """name: {name}
data: {{corpus: "text:corpus.txt", context_length: 16}}
sizes:
  small: {{embedding_dim: 2, num_blocks: 1, num_heads: 1}}
  middle: {{embedding_dim: 4, num_blocks: 1, num_heads: 1}}
  large: {{embedding_dim: 8, num_blocks: 1, num_heads: 1}}
grid: {{model: [llama], size: {sizes}, tokens: {tokens}, learning_rate: {rates}}}
train: {{batch_sequences: 8, warmup_steps: {warmup}, schedule: wsd, decay_fraction: 0.2}}
resources: [{{set: {{log_every: {log_every}, checkpoint_every: 100000}}}}]
evaluation: {{sequences: 16}}
"""
SWEEPS = {
    "old": {"sizes": "[small, middle, large]", "tokens": "[1280, 2560, 5120]"},
    "troubled": {"sizes": "[small]", "tokens": "[1280]", "rates": "[0.02, 1e30]", "warmup": 0},
    "interrupted": {"sizes": "[small]", "tokens": "[128K]", "log_every": 50},
    "extended": {"sizes": "[small]", "tokens": "[5120, 10240]"},
}


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"SCALING_WORKSPACE": str(folder / "workspace")}
    command = [sys.executable, "-m", "orchestrator.cli", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def said(folder: Path, *words: str) -> str:
    return start(folder, *words).communicate()[0]


def standing(folder: Path, sweep: str) -> dict[str, Any]:
    return json.loads(said(folder, "status", sweep, "--json"))


def shown(folder: Path) -> dict[str, dict[str, Any]]:
    """Parameters and metrics, step by step, of all runs in MLflow, by sweep and run."""
    said(folder, "sync")
    client = MlflowClient(f"sqlite:///{folder / 'workspace' / 'mlflow.db'}")
    found: dict[str, dict[str, Any]] = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            metrics = {
                name: sorted([point.step, point.value] for point in client.get_metric_history(run.info.run_id, name))
                for name in run.data.metrics
            }
            name = run.data.tags.get("run_id", "")
            found.setdefault(experiment.name, {})[name] = {"params": run.data.params, "metrics": metrics}
    return found


def main(folder: Path) -> None:
    train(folder)
    told = {name: standing(folder, name) for name in ("old", "troubled", "interrupted")}
    everything = {"status": told, "fit": json.loads(said(folder, "fit", "old", "--json")), "mlflow": shown(folder)}
    pack(folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    with tarfile.open(HERE / "workspace.tar.xz") as archive:
        archive.extractall(elsewhere, filter="data")
    for name in ("interrupted", "extended"):
        said(elsewhere, "submit", str(elsewhere / f"{name}.yaml"))
        everything[name] = {"status": standing(elsewhere, name), "mlflow": shown(elsewhere)[name]}
    (HERE / "said.json").write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")


def train(folder: Path) -> None:
    (folder / "corpus.txt").write_text(" ".join(f"{i} squared is {i * i};" for i in range(2000)))
    for name, given in SWEEPS.items():
        settings = {"rates": "[3e-2]", "warmup": 2, "log_every": 4} | given
        (folder / f"{name}.yaml").write_text(SWEEP.format(name=name, **settings))
    runs = folder / "workspace" / "runs"

    said(folder, "submit", str(folder / "old.yaml"))
    said(folder, "fit", "old")

    planned = json.loads(said(folder, "plan", str(folder / "troubled.yaml"), "--json"))["runs"]
    obstacle = runs / planned[0]["run_id"] / "checkpoints"  # no folder can be made where a file lies
    obstacle.parent.mkdir()
    obstacle.touch()
    said(folder, "submit", str(folder / "troubled.yaml"))
    obstacle.unlink()

    (planned,) = json.loads(said(folder, "plan", str(folder / "interrupted.yaml"), "--json"))["runs"]
    submission = start(folder, "submit", str(folder / "interrupted.yaml"))
    metrics = runs / planned["run_id"] / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        time.sleep(0.01)
    submission.send_signal(signal.SIGINT)
    submission.communicate()


def pack(folder: Path) -> None:
    """The sweeps and the workspace, without its MLflow store, figures, locks and needless checkpoints."""
    host = os.uname().nodename.encode()
    (trunk,) = folder.glob("workspace/runs/llama-1.43K-5.12K-*")
    (interrupted,) = folder.glob("workspace/runs/llama-1.43K-128K-*")
    with tarfile.open(HERE / "workspace.tar.xz", "w:xz") as archive:
        for path in sorted(folder.rglob("*")):
            name = str(path.relative_to(folder))
            started_from = path.is_relative_to(interrupted) or path.is_relative_to(trunk / "checkpoints/step-00000032")
            needless = "/checkpoints/" in name and not started_from
            needless |= "mlflow.db" in name or "mlartifacts" in name or "elsewhere" in name
            if path.is_file() and not needless and path.suffix not in (".lock", ".png", ".pdf", ".svg"):
                content = path.read_bytes()
                if path.suffix == ".json":
                    content = content.replace(b'"' + host + b'"', b'"another"')
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
