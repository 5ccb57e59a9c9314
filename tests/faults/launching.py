"""Real attempts of tiny runs for the tests: prepared data, a lease, and one process per rank."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forking import ForkedRank, fork_rank
from ports import free_port
from waiting import wait_until

from xlstm.data import declare, prepare
from xlstm.models.configs import LlamaConfig, ModelConfig
from xlstm.run.directory import RunDirectory, Workspace
from xlstm.run.processes import TOKEN_VARIABLE
from xlstm.run.records import Fork, Launch, Result, State, Verdict, write_json
from xlstm.run.spec import Evaluation, Execution, Optimizer, Physics, RunSpec, Schedule

REPOSITORY = Path(__file__).parents[2]
GATED = f"import sys; sys.path.append({str(REPOSITORY / 'tests')!r}); import gates; gates.install()"
CONTEXT, SEQUENCES = 32, 8
BATCH = CONTEXT * SEQUENCES
MODEL = LlamaConfig(vocab_size=256, embedding_dim=32, num_blocks=2, num_heads=2)


def make_run(
    workspace: Workspace,
    *,
    steps: int = 20,
    model: ModelConfig = MODEL,
    schedule: Schedule | None = None,
    physics: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    corpus: str = "text",
    **execution: Any,
) -> RunDirectory:
    """A run over a small text of its own, planned and its data prepared."""
    text = workspace.root / ("corpus.txt" if corpus == "text" else "corpus.jsonl")
    if not text.exists():
        text.parent.mkdir(parents=True, exist_ok=True)
        # Numbers in words of different lengths: something to learn, and no two documents alike.
        text.write_text(" ".join(f"{i} squared is {i * i}; " + "ab" * (i % 7) for i in range(4000)))
    declared, _ = declare(corpus, "bytes", CONTEXT, (str(text),))
    declared = declared.model_copy(update=data or {})
    prepare(declared, (str(text),), workspace)
    execution = {"device": "cpu", "threads_per_rank": 1, "log_every": 1, "checkpoint_every": 5, **execution}
    spec = RunSpec(
        physics=Physics(
            model=model,
            data=declared,
            tokens=steps * BATCH,
            batch_tokens=BATCH,
            schedule=schedule or Schedule(warmup_steps=3),
            **{"optimizer": Optimizer(learning_rate=1e-2)} | (physics or {}),
        ),
        execution=Execution(**execution, data_paths=(str(text),)),
        evaluation=Evaluation(sequences=32),
    )
    run = workspace.run(spec.run_id)
    run.create(spec)
    return run


@dataclass
class Attempt:
    """The processes of one attempt."""

    run: RunDirectory
    number: int
    ranks: list[subprocess.Popen[bytes] | ForkedRank]
    token: str

    def wait(self) -> "Attempt":
        """Wait until every process has ended."""
        for process in self.ranks:
            process.wait(timeout=300)
        return self

    def wait_for_step(self, step: int) -> "Attempt":
        """Wait until a row of this attempt for `step` is in the metrics."""
        wait_until(lambda: any(r["step"] >= step and r["attempt"] == self.number for r in self.run.metrics()))
        return self

    def wait_for_checkpoint(self) -> "Attempt":
        """Wait until a checkpoint of the run is complete."""
        wait_until(lambda: any(self.run.checkpoints.glob("step-*/COMPLETE")))
        return self

    def kill(self, number: int = signal.SIGKILL) -> "Attempt":
        """Send a signal to every rank, SIGKILL unless told, and wait for the end."""
        for process in self.ranks:
            process.send_signal(number)
        return self.wait()

    @property
    def verdict(self) -> Verdict:
        verdict = self.run.verdict(self.number)
        assert verdict is not None, self.log()
        return verdict

    def log(self) -> str:
        """What all ranks printed."""
        return "\n".join(p.read_text() for p in sorted(self.run.attempt(self.number).glob("rank-*.log")))

    def completed(self) -> Result:
        """The run's result, after the attempt completed it."""
        self.wait()
        assert self.verdict.state is State.COMPLETED, f"{self.verdict}\n{self.log()}"
        result = self.run.result()
        assert result is not None
        return result


def start(
    run: RunDirectory,
    ranks: int = 1,
    *,
    fork: Fork | None = None,
    checkpoint_at: tuple[int, ...] = (),
    environment: dict[str, str] | None = None,
    wrapper: str | None = None,
    forked: bool = True,
    **execution: Any,
) -> Attempt:
    """Begin the next attempt of a run on `ranks` processes. `wrapper` is Python run in each before the trainer.

    Where that must come before torch and Numba are imported, the processes are not to be `forked`. All wait at gates.
    """
    token = uuid.uuid4().hex
    _end_lease(run)
    lease = run.acquire(token)
    resolved = run.spec().execution.model_copy(update={"devices": ranks} | execution)
    launch = Launch(
        run_id=run.run_id,
        attempt=lease.attempt,
        token=token,
        executor="test",
        execution=resolved,
        host=socket.gethostname(),
        rendezvous="",
        started=time.time(),
        fork=fork,
        checkpoint_at=checkpoint_at,
    )
    write_json(run.attempt(lease.attempt) / "launch.json", launch.model_dump(mode="json"))
    port = free_port()
    program = f"{wrapper or ''}\n{GATED}"
    arguments = [str(run.path), "--attempt", str(lease.attempt), "--token", token]
    processes: list[subprocess.Popen[bytes] | ForkedRank] = []
    for rank in range(ranks):
        variables = os.environ | {
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        variables |= environment or {}
        if forked:
            processes.append(fork_rank(arguments, variables, program))
        else:
            module = "import runpy; runpy.run_module('xlstm.training', run_name='__main__', alter_sys=True)"
            command = [sys.executable, "-c", f"{program}\n{module}", *arguments]
            processes.append(subprocess.Popen(command, env=variables, cwd=REPOSITORY))
    return Attempt(run, lease.attempt, processes, token)


def losses(run: RunDirectory) -> list[tuple[int, float]]:
    """(step, training loss) of the surviving rows."""
    return [(row["step"], row["train/loss"]) for row in run.metrics() if "train/loss" in row]


def _end_lease(run: RunDirectory) -> None:
    """Give back the lease of the attempt before, which this process holds as its launcher."""
    status = run.status()
    if status.lease is not None:
        content = status.model_dump(mode="json") | {"lease": None}
        (run.path / "status.json").write_text(json.dumps(content))


def start_under_torchrun(run: RunDirectory, ranks: int = 1) -> Attempt:
    """Like `start`, with a real torchrun above the ranks, as the launcher starts it."""
    prepared = start(run, 0, devices=ranks)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "localhost:0",
    ]
    command += ["--nproc-per-node", str(ranks), "--max-restarts", "0", "--monitor-interval", "0.1"]
    command += ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1,SIGUSR2"]
    command += ["-m", "xlstm.training", str(run.path), "--attempt", str(prepared.number), "--token", prepared.token]
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests" / "gated"), str(REPOSITORY)]),
        "OMP_NUM_THREADS": "1",
        TOKEN_VARIABLE: prepared.token,
    }
    torchrun = subprocess.Popen(command, env=variables, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    return Attempt(run, prepared.number, [torchrun], prepared.token)
