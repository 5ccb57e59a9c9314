"""The command line on a workspace of its own."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from ray_processes import add_node, give_back, start_cluster
from typer.testing import CliRunner

from orchestrator.execution.warm import COLD_START_VARIABLE, WarmStart
from orchestrator.executors import local
from orchestrator.planning.plan import RunPlan
from xlstm.data import prepare
from xlstm.run.directory import Workspace
from xlstm.run.records import Launch, Parameters, Result, State, Validation, Verdict, write_json
from xlstm.run.spec import RunSpec

TRIVIAL = Path(__file__).parent / "trivial"
REPOSITORY = Path(__file__).parents[2]

SWEEP = """name: tiny
data: {{corpus: "text:{corpus}", context_length: 32}}
sizes:
  small: {{embedding_dim: 16, num_blocks: 1, num_heads: 2}}
  large: {{embedding_dim: 32, num_blocks: 2, num_heads: 2}}
grid:
  model: [llama]
  size: [small]
  tokens: [2560, 5120]
train: {{batch_sequences: 8, learning_rate: 1e-2, warmup_steps: 2}}
resources: [{{set: {{checkpoint_every: 5, log_every: 1}}}}]
evaluation: {{sequences: 16}}
"""


@dataclass(frozen=True)
class Said:
    """What a call of `scaling` left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """Calls `scaling` in this process, or as a process of its own."""

    workspace: Path
    started: "list[subprocess.Popen[str]]" = field(default_factory=list)
    """Those that are processes of their own."""

    def __call__(self, *arguments: str) -> Said:
        from orchestrator.cli import app

        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Said(result.exit_code, result.stdout, result.stderr)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={"PYTHONPATH": str(REPOSITORY)} | os.environ,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """End what a failed test has left, detached or not: it would take the cores of the next one."""
        for process in self.started:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        for one in psutil.process_iter() if self.started else ():
            with suppress(psutil.Error):
                if any(word.startswith(str(self.workspace)) for word in one.cmdline()):
                    one.kill()

    def run(self, *arguments: str) -> Said:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=300)
        return Said(process.returncode, out, err)


@functools.cache
def _warm_start() -> WarmStart:
    return WarmStart()


@pytest.fixture
def scaling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    # What is submitted in this process is forked from one server: torch is imported once for all tests.
    monkeypatch.setattr(local, "WarmStart", _warm_start)
    monkeypatch.setenv("SCALING_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shell = Shell(tmp_path / "workspace")
    yield shell
    shell.end()


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., str]:
    """Write the tiny sweep with parts of its text replaced; returns its path."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(" ".join(f"{i} squared is {i * i};" for i in range(4000)))

    def write(*replacements: tuple[str, str]) -> str:
        text = SWEEP.format(corpus=corpus)
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "tiny.yaml"
        path.write_text(text)
        return str(path)

    return write


@dataclass(frozen=True)
class Trivial:
    """The folder that the trivial trainer reads its faults from and writes its steps to."""

    folder: Path
    once: ClassVar = [1, 2, 3, 4]
    """The steps of a run that was trained once."""

    def runs(self, count: int) -> tuple[str, str]:
        """What makes the tiny sweep one of so many runs, for `write_sweep`."""
        return ("tokens: [2560, 5120]", f"tokens: [{len(self.once) * 256}]\n  seed: {list(range(count))}")

    def prepare(self, specs: list[RunSpec], faults: dict[str, str]) -> None:
        (self.folder / "results").mkdir(parents=True, exist_ok=True)
        (self.folder / "faults.json").write_text(json.dumps(faults))
        workspace = Workspace(self.folder.with_name("workspace"))
        for spec in specs:
            text = prepare(spec.physics.data, spec.execution.data_paths, workspace).fingerprint
            result = result_of(spec, data_fingerprint=text)
            (self.folder / "results" / f"{spec.run_id}.json").write_text(result.model_dump_json())

    def executed(self) -> dict[str, list[int]]:
        """The steps that were executed, in order, by run."""
        steps: dict[str, list[int]] = {}
        for line in (self.folder / "executed.log").read_text().splitlines():
            run_id, _, step = line.split()
            steps.setdefault(run_id, []).append(int(step))
        return steps


def result_of(spec: RunSpec, **given: Any) -> Result:
    """What a run of this specification might have come to, and what is `given`."""
    result = Result(
        run_id=spec.run_id,
        family="llama",
        size="small",
        seed=spec.physics.seed,
        tokens=spec.physics.tokens,
        steps=len(Trivial.once),
        parameters=Parameters(total=1, non_embedding=1, non_embedding_with_head=1),
        flops={"exact": 6.0, "6nd": 6.0},
        validation=Validation(loss=1.0, perplexity=2.7, tokens=1, evaluation=spec.evaluation_fingerprint),
        wall_seconds=0.1,
        device_hours=0.1 / 3600,
        attempts=1,
        data_fingerprint="d",
        tokenizer="bytes",
        schedule="cosine",
    )
    return result.model_copy(update=given)


def _finish(workspace: Workspace, planned: RunPlan, **given: Any) -> None:
    row, run = planned.document(), workspace.run(planned.run_id)
    about = {"family": row["model"], "size": row["size"], "steps": row["steps"], "flops": row["flops"]}
    result = result_of(planned.spec, **about, parameters=Parameters(**row["parameters"]), **given)
    identity = {"run_id": run.run_id, "attempt": 1, "token": "t", "executor": "local"}
    on_cpu = planned.spec.execution.model_copy(update={"device": "cpu"})
    now = time.time()
    launch = Launch(**identity, execution=on_cpu, host="", rendezvous="", started=now)
    run.create(planned.spec)
    lease = run.acquire("t")
    run.append_metrics({"step": row["steps"], "time": now, "attempt": 1, "train/loss": result.validation.loss})
    write_json(run.attempt(1) / "launch.json", launch.model_dump(mode="json"))
    write_json(run.attempt(1) / "exit.json", Verdict(state=State.COMPLETED).model_dump(mode="json"))
    write_json(run.path / "result.json", result.model_dump(mode="json"))
    lease.release(State.COMPLETED)


@pytest.fixture
def finish() -> Callable[..., None]:
    """Leaves what a complete run leaves: `finish(workspace, planned run, what its result shall hold)`."""
    return _finish


@pytest.fixture
def trivial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trivial]:
    """Puts the trivial trainer in torchrun's place, for the processes that start from here on."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TRIVIAL), str(REPOSITORY)]))
    monkeypatch.setenv(COLD_START_VARIABLE, "1")
    made = Trivial(tmp_path / "trivial")
    made.folder.mkdir()
    yield made
    (made.folder / "go").touch()  # a run that a failed test left waiting keeps no core


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Any]:
    """A head without cores, and three nodes with one core each."""
    ray = pytest.importorskip("ray")
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    # A lost node is noticed after two seconds, not after twenty.
    notice = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": notice}
    made = start_cluster(head, *3 * [{"num_cpus": 1}])
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def cluster(three_nodes: Any) -> Iterator[Any]:
    """That cluster; what a failed test asked it for, or has taken from it, the next one finds as at the start."""
    yield three_nodes
    if three_nodes.head_node is None:
        return  # the last test took it down
    give_back(three_nodes)
    for _ in range(3 - len(three_nodes.worker_nodes)):
        add_node(three_nodes, num_cpus=1)
