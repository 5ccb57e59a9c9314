"""Two threads of a trainer beside other busy processes: how much slower than on an idle machine, by OpenMP's settings.

    python -m benchmarks.busy_neighbours [--steps 40] [--turns 3] [--json FILE]

Steps of the quickstart's largest xLSTM[3:1] with two threads, in a process of its own for each setting: alone, and
beside as many busy processes as there are cores. Where nothing is set, a thread that waits for another spins for as
long as its core is given to it, while the other waits for a core. Medians over turns of seconds a step; the losses are
compared, too.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SETTINGS = {
    "threads spin": {},
    "threads spin briefly": {"GOMP_SPINCOUNT": "1000"},
    "threads sleep": {"OMP_WAIT_POLICY": "passive"},
}
BUSY = "while True: pass"


def work(steps: int) -> None:
    """Train, and print seconds a step and the last loss; the first few steps are not timed."""
    import time

    import torch

    from orchestrator.planning.plan import make_plan
    from sweeps.sweep import Sweep
    from xlstm.models import build
    from xlstm.run.directory import Workspace
    from xlstm.training.optimization.optimizer import build_optimizer
    from xlstm.training.parallel import init_weights

    torch.set_num_threads(2)
    sweep = Sweep.load("quickstart", ["grid.model=['xlstm[3:1]']", "grid.size=[500K]", "grid.tokens=[150K]"])
    (run,) = make_plan(sweep, Workspace(Path("/nowhere"))).runs
    physics = run.spec.physics
    model = build(physics.model)
    init_weights(model, 0)
    optimizer = build_optimizer(model, physics.optimizer)
    generator = torch.Generator().manual_seed(0)
    shape = (physics.batch_sequences, physics.data.context_length + 1)
    taken = []
    for step in range(steps + 5):
        text = torch.randint(0, 256, shape, generator=generator)
        began = time.perf_counter()
        loss = model(text[:, :-1], targets=text[:, 1:])[0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        taken += [time.perf_counter() - began] if step >= 5 else []
    print(json.dumps({"seconds": sum(taken) / len(taken), "loss": loss.item()}))


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that never wait."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(steps: int, turns: int) -> dict[str, dict[str, float]]:
    """Seconds a step by setting: alone, beside busy processes, and the quotient. RuntimeError where losses differ."""
    taken: dict[str, dict[str, list[float]]] = {name: {"alone": [], "beside": []} for name in SETTINGS}
    losses = set()
    for _ in range(turns):
        for name, setting in SETTINGS.items():
            for where, count in (("alone", 0), ("beside", os.cpu_count() or 1)):
                environment = os.environ | {"OMP_NUM_THREADS": "2"} | setting
                command = [sys.executable, "-m", "benchmarks.busy_neighbours", "--work", str(steps)]
                with neighbours(count):
                    said = json.loads(subprocess.check_output(command, env=environment))
                taken[name][where].append(said["seconds"])
                losses.add(said["loss"])
    if len(losses) != 1:
        raise RuntimeError(f"the settings change results: {losses}")
    found = {}
    for name, sides in taken.items():
        alone, beside = (statistics.median(sides[where]) for where in ("alone", "beside"))
        found[name] = {"alone": alone, "beside": beside, "slower": beside / alone}
    return found


def main() -> None:
    """Measure, print a table, and keep the numbers where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.work)
        return
    found = measure(given.steps, given.turns)
    print("| two threads | alone, ms a step | beside busy processes | times slower |\n| --- | ---: | ---: | ---: |")
    for name, one in found.items():
        print(f"| {name} | {one['alone'] * 1e3:.1f} | {one['beside'] * 1e3:.1f} | {one['slower']:.1f} |")
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
