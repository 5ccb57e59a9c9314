"""What a hand waits for: CPU seconds of the verbs on a finished sweep, of two checkouts by turns.

    python -m benchmarks.verbs WORKSPACE SWEEP [--against CHECKOUT] [--turns 3] [--json FILE]

WORKSPACE is copied for each checkout, so that nothing in it changes. CHECKOUT is another revision of this project with
its own environment in `.venv`. Medians over turns; `submit` and `ui` are seconds on the clock, the others CPU seconds
of the process and its children. Everything is run once before, so that kernels are compiled and caches are warm.
"""

import argparse
import contextlib
import json
import math
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 300.0
TINY = """name: first-step
data: {{corpus: "text:{corpus}", context_length: 64}}
sizes: {{tiny: {{"xlstm[3:1]": {{embedding_dim: 32, num_blocks: 4}}}}}}
grid: {{model: ["xlstm[3:1]"], size: [tiny], tokens: [10240], seed: [{seed}]}}
train: {{batch_sequences: 8, learning_rate: 1e-2, warmup_steps: 2}}
resources: [{{set: {{log_every: 1}}}}]
evaluation: {{sequences: 8}}
"""


@dataclass(frozen=True)
class Side:
    """A checkout, with a copy of the workspace."""

    name: str
    checkout: Path
    python: str
    workspace: Path

    def start(self, *arguments: str, workspace: Path | None = None) -> "subprocess.Popen[bytes]":
        """A call of `scaling` of this checkout."""
        environment = os.environ | {
            "SCALING_WORKSPACE": str(workspace or self.workspace),
            "PYTHONPATH": str(self.checkout),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        environment.pop("MLFLOW_TRACKING_URI", None)
        command = [self.python, "-m", "orchestrator.cli", *arguments]
        silent = subprocess.DEVNULL
        return subprocess.Popen(command, cwd=self.checkout, env=environment, stdout=silent, stderr=silent)

    def cpu_seconds(self, *arguments: str) -> float:
        """Of one call, its children included; not a number where it fails, as on what another revision cannot read."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        if self.start(*arguments).wait() != 0:
            return math.nan
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def seconds_to_first_step(self, folder: Path, seed: int) -> float:
        """From the call of `submit` to the first row of metrics, in a workspace whose data are prepared."""
        sweep, workspace = folder / "first-step.yaml", folder / f"first-{self.name}"
        sweep.write_text(TINY.format(corpus=folder / "corpus.txt", seed=seed))
        seen = set(workspace.glob("runs/*/metrics.jsonl"))
        began = time.perf_counter()
        process = self.start("submit", str(sweep), "--replace", workspace=workspace) if self.name == "now" else None
        process = process or self.start("submit", str(sweep), workspace=workspace)
        waited = _until(lambda: set(workspace.glob("runs/*/metrics.jsonl")) - seen, began, 0.02)
        process.wait()
        return waited

    def seconds_to_ui(self) -> float:
        """From the call of `ui` to its first answer."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def answers() -> bool:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return True
            return False

        began = time.perf_counter()
        process = self.start("ui", "--port", str(port))
        try:
            return _until(answers, began, 0.1)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait()


def _until(happened: Callable[[], object], began: float, every: float) -> float:
    while not happened():
        if time.perf_counter() - began > LIMIT_SECONDS:
            raise TimeoutError(f"nothing within {LIMIT_SECONDS:.0f} s")
        time.sleep(every)
    return time.perf_counter() - began


def measure(
    sides: list[Side], sweep: str, turns: int, warm: int, folder: Path, *, clock: bool
) -> dict[str, dict[str, float]]:
    """Seconds by verb and side, medians over turns, of which the first `warm` do not count."""
    run = sorted(path.name for path in (sides[0].workspace / "runs").iterdir())[0]
    verbs = {
        "status": ("status", sweep),
        "fit": ("fit", sweep),
        "report": ("report", sweep),
        "plot": ("plot", sweep),
        "sync, nothing new": ("sync",),
        "generate, 80 tokens": ("generate", run, "--prompt", "def ", "--tokens", "80"),
    }
    taken: dict[str, dict[str, list[float]]] = {}
    for turn in range(warm + turns):
        for side in sides:
            measured = {name: side.cpu_seconds(*arguments) for name, arguments in verbs.items()}
            if clock:
                measured["submit to first step"] = side.seconds_to_first_step(folder, turn)
                measured["ui to first answer"] = side.seconds_to_ui()
            for name, seconds in measured.items() if turn >= warm else ():
                taken.setdefault(name, {}).setdefault(side.name, []).append(seconds)
    return {name: {side: statistics.median(each) for side, each in by_side.items()} for name, by_side in taken.items()}


def table(measured: dict[str, dict[str, float]]) -> str:
    """The numbers as Markdown."""
    sides = list(next(iter(measured.values())))
    lines = [f"| seconds | {' | '.join(sides)} |", "| --- " + "| ---: " * len(sides) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[side]:.2f}' for side in sides)} |" for name, row in measured.items()]
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and keep the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("sweep")
    parser.add_argument("--against", type=Path, help="another checkout, with its environment in .venv")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--warm", type=int, default=1, help="turns before, which do not count")
    parser.add_argument("--cpu-alone", action="store_true", help="leave out what is timed on the clock")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "corpus.txt").write_text(" ".join(f"{i} squared is {i * i};" for i in range(20000)))
        checkouts = [("now", HERE, sys.executable)]
        if given.against:
            against = given.against.resolve()
            checkouts.insert(0, ("before", against, str(against / ".venv" / "bin" / "python")))
        sides = []
        for name, checkout, python in checkouts:
            copy = folder / name
            shutil.copytree(given.workspace, copy, ignore=shutil.ignore_patterns("mlflow*", "mlartifacts", ".mlflow*"))
            sides.append(Side(name, checkout, python, copy))
            sides[-1].cpu_seconds("sync")  # so that later there is nothing new
        measured = measure(sides, given.sweep, given.turns, given.warm, folder, clock=not given.cpu_alone)
    print(table(measured))
    if given.json:
        given.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
