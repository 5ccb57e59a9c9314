"""Many runs of about a second: what each costs beside its training, forked from one server and started anew.

    python -m benchmarks.tiny_runs [--on local] [--runs 200] [--anew 20] [--steps 60] [--json FILE] [--markdown FILE]

A sweep of one small model with as many seeds is submitted to this machine, held to one core, each way: with
`--steps` steps a run, and with one step a run, which is what a run costs beside its training. Sweeps of both ways are
submitted in turn. Wall seconds, divided by the runs of the sweep; importing torch, once a sweep, is among them. With
`--on ray` on a cluster of that one core, which is there before; joining it, once a sweep, is among them too.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import describe
from orchestrator.execution.warm import COLD_START_VARIABLE

SWEEP = """name: tiny
data: {{corpus: "text:{corpus}", context_length: 128}}
sizes: {{tiny: {{embedding_dim: 64, num_blocks: 2, num_heads: 2}}}}
grid: {{model: llama, size: tiny, tokens: {tokens}, seed: {seeds}}}
train: {{batch_sequences: 4, learning_rate: 1.0e-2, warmup_steps: 0}}
evaluation: {{sequences: 4}}
"""
BATCH_TOKENS = 4 * 128


def start_cluster() -> None:
    """A Ray cluster of one core that ends with this process, known to what is submitted from here on."""
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def seconds_a_run(folder: Path, *, runs: int, steps: int, anew: bool, engine: str) -> float:
    """Wall seconds of a sweep of so many runs, divided by them."""
    corpus = folder / "corpus.txt"
    corpus.write_text(" ".join(f"{number} squared is {number * number};" for number in range(20000)))
    sweep = folder / "tiny.yaml"
    sweep.write_text(SWEEP.format(corpus=corpus, tokens=steps * BATCH_TOKENS, seeds=list(range(runs))))
    with tempfile.TemporaryDirectory(dir=folder) as workspace:
        environment = os.environ | {"SCALING_WORKSPACE": workspace, COLD_START_VARIABLE: "1" if anew else ""}
        began = time.perf_counter()
        command = [sys.executable, "-m", "orchestrator.cli", "submit", str(sweep), "--on", engine]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return (time.perf_counter() - began) / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=("local", "ray"), default="local")
    parser.add_argument("--runs", type=int, default=200, help="runs of a sweep that are forked")
    parser.add_argument("--anew", type=int, default=20, help="runs of a sweep that are started anew")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if options.on == "ray":
        start_cluster()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        seconds_a_run(
            Path(folder), runs=1, steps=2, anew=False, engine=options.on
        )  # kernels are compiled once and for all
        for steps in (1, options.steps):
            forked = seconds_a_run(Path(folder), runs=options.runs, steps=steps, anew=False, engine=options.on)
            anew = seconds_a_run(Path(folder), runs=options.anew, steps=steps, anew=True, engine=options.on)
            rows.append({"steps": steps, "forked": forked, "anew": anew, "ratio": anew / forked})
    machine = describe("cpu")
    where = f"one core of {machine['chip']}" + (", on a Ray cluster" if options.on == "ray" else "")
    told = f"{options.runs} runs forked, {options.anew} started anew, on {where}:"
    table = [told, "", "| steps a run | forked, s a run | started anew, s a run | ratio |", "|---|---|---|---|"]
    table += ["| {steps} | {forked:.2f} | {anew:.2f} | {ratio:.1f} |".format(**row) for row in rows]
    print("\n".join(table))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text("\n".join(["# Many tiny runs", "", (__doc__ or "").strip(), "", *table, ""]))


if __name__ == "__main__":
    main()
