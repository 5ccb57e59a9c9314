"""One training step of xLSTM beside NX-AI's package, `xlstm` 2.0.6, with the same weights on the same tokens.

Forward, loss, backward and AdamW, both sides in turns in one run; the ratio is the median of the rounds' ratios, on the
clock and in processor time, the steadier one where others use the machine. The peer answers from a process of its own
(`nxai_stepper.py`), which rests while we work. Beside each time stands the floor: the exact FLOPs over the rate of this
machine's largest matrix products, measured in the same run.

    .venv-parity/bin/python -m benchmarks.block                  the steps
    .venv-parity/bin/python -m benchmarks.block --memory         bytes of a step over the length

With `--device cuda` the steps are those of the published sizes in bfloat16, with tokens per second and MFU: ours as the
trainer takes them, weights in float32 and passes in bfloat16, the peer's under autocast, as it is made for.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.baselines_gpu import Training, our_side
from benchmarks.machine import describe, matrix_rate, memory_used, wait
from xlstm.accounting import training_flops_per_token
from xlstm.export.xlstm_packages import to_nxai
from xlstm.models import build
from xlstm.models.configs import XLSTMConfig
from xlstm.models.initialization import initialize
from xlstm.models.published import DIMENSIONS
from xlstm.training.machine import keep_freed_memory


@dataclass(frozen=True)
class Case:
    """What one step is taken on; `layer`: an sLSTM layer alone, with convolution and norm, on normal inputs."""

    name: str
    batch: int
    length: int
    width: int
    blocks: int
    slstm_at: tuple[int, ...] = ()
    layer: bool = False
    vocab_size: int = 256
    bfloat16: bool = False

    @property
    def config(self) -> XLSTMConfig:
        return XLSTMConfig(
            vocab_size=self.vocab_size, embedding_dim=self.width, num_blocks=self.blocks, slstm_at=self.slstm_at
        )


def laptop_cases() -> list[Case]:
    """The two shapes every CPU can run, with and without sLSTM blocks, and the sLSTM layer alone."""
    return [
        Case(name, *shape, **options)
        for shape in ((8, 256, 128), (2, 2048, 384))
        for name, options in (
            ("xlstm[1:0]", {"blocks": 4}),
            ("xlstm[3:1]", {"blocks": 4, "slstm_at": (1,)}),
            ("slstm layer", {"blocks": 1, "slstm_at": (0,), "layer": True}),
        )
    ]


def published_cases() -> list[Case]:
    """xLSTM[1:0] at the published sizes, 2048 tokens of context, GPT-NeoX's vocabulary, in bfloat16."""
    return [
        Case(f"xlstm[1:0] {size}", batch, 2048, dims["embedding_dim"], dims["num_blocks"], (), False, 50304, True)
        for size, batch in (("125M", 16), ("350M", 8), ("1.3B", 4))
        for dims in (DIMENSIONS["xlstm"][size],)
    ]


def memory_cases() -> list[Case]:
    """One sequence, longer and longer."""
    return [Case("xlstm[1:0]", 1, length, 128, 4) for length in (1024, 2048, 4096, 8192, 16384)]


def inputs_of(case: Case) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if case.layer:
        return torch.randn(case.batch, case.length, case.width, generator=generator)
    return torch.randint(case.vocab_size, (case.batch, case.length), generator=generator)


class Ours:
    """Our side: a model, its optimizer, and one step at a time."""

    def __init__(self, case: Case, device: str) -> None:
        model = build(case.config)
        initialize(model, seed=0)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # away from zero, so that no path is dead
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self.case, self.device, self.model = case, device, model.to(device)
        self.inputs = inputs_of(case).to(device)
        part = model.blocks[0] if case.layer else model
        self.side: Training | None = None
        if case.bfloat16:
            self.side = our_side(model, self.inputs)
            self.side.to_bfloat16()
        else:
            self.optimizer = torch.optim.AdamW(part.parameters(), lr=0.0, fused=True)

    def loss(self) -> Tensor:
        if self.case.layer:
            return self.model.blocks[0].cell(self.inputs, None, None)[0].square().mean()
        return self.model(self.inputs, targets=self.inputs.roll(-1, dims=1))[0].mean()

    def _step(self) -> None:
        if self.side is not None:
            self.side.step()
        else:
            self.loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        wait(self.device)

    def step(self) -> dict[str, float]:
        """Seconds of one training step on the clock and of the processor."""
        begin, processor = time.perf_counter(), time.process_time()
        self._step()
        return {"seconds": time.perf_counter() - begin, "processor": time.process_time() - processor}

    def memory(self) -> dict[str, float]:
        """Bytes that a step needs beyond what lay there: apart from the timed ones, as the system must forget first."""
        with memory_used(self.device) as used:
            self._step()
        return {"bytes": used.bytes}

    def flops(self) -> float | None:
        """Exact FLOPs of a step; None for a layer alone."""
        case = self.case
        return None if case.layer else training_flops_per_token(case.config, case.length) * case.batch * case.length


class Theirs:
    """The peer in its own process: same weights, one step when asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.first_loss = float(self._answer())

    def step(self) -> dict[str, float]:
        return self._ask("step")

    def memory(self) -> dict[str, float]:
        return self._ask("memory")

    def _ask(self, what: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("the peer ended; what it said stands above")
        return json.loads(line)


@contextmanager
def peer(case: Case, weights: dict[str, Tensor], device: str, python: str) -> Iterator[Theirs]:
    """The peer with our weights."""
    with TemporaryDirectory() as folder:
        request = {
            "vocab_size": case.vocab_size, "embedding_dim": case.width, "num_blocks": case.blocks, "num_heads": 4,
            "slstm_at": list(case.slstm_at), "length": case.length, "layer": case.layer, "device": device,
            "threads": torch.get_num_threads(), "autocast": case.bfloat16,
        }  # fmt: skip
        (Path(folder) / "request.json").write_text(json.dumps(request))
        given = {"weights": to_nxai(case.config, weights), "inputs": inputs_of(case)}
        torch.save(given, Path(folder) / "weights.pt")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        script = Path(__file__).with_name("nxai_stepper.py")
        process = subprocess.Popen(
            [python, "-P", script, folder], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            yield Theirs(process)
        finally:
            process.stdin.close()
            process.wait()
            process.stdout.close()


def compare(case: Case, rounds: int, device: str, python: str | None, rate: float) -> dict[str, Any]:
    """Both sides in turns. Without a peer (`python` None) its columns stay empty."""
    ours = Ours(case, device)
    with torch.no_grad():
        first_loss = float(ours.loss())
    ours.step()
    row: dict[str, Any] = asdict(case) | {"flops": ours.flops()}
    mine: list[dict[str, float]] = []
    other: list[dict[str, float]] = []
    if python is None:
        mine = [ours.step() for _ in range(rounds)]
        row["ours_bytes"] = ours.memory()["bytes"]
    else:
        with peer(case, ours.weights, device, python) as theirs:
            row["loss_difference"] = abs(first_loss - theirs.first_loss) / abs(theirs.first_loss)
            if rounds > 1:
                theirs.step()
            for _ in range(rounds):
                mine.append(ours.step())
                other.append(theirs.step())
            row["ours_bytes"], row["theirs_bytes"] = ours.memory()["bytes"], theirs.memory()["bytes"]
    row["ours_seconds"] = statistics.median(step["seconds"] for step in mine)
    row["tokens_per_second"] = case.batch * case.length / row["ours_seconds"]
    if row["flops"] is not None:
        row["floor_seconds"] = row["flops"] / rate
        row["ours_over_floor"] = row["ours_seconds"] / row["floor_seconds"]
    if other:
        row["theirs_seconds"] = statistics.median(step["seconds"] for step in other)
        for ratio, key in (("ratio", "seconds"), ("processor_ratio", "processor")):
            row[ratio] = statistics.median(b[key] / a[key] for a, b in zip(mine, other, strict=True))
    return row


COLUMNS = (
    ("ours_seconds", "ours ms", 1e3, ".1f"),
    ("theirs_seconds", "theirs ms", 1e3, ".1f"),
    ("ratio", "ratio", 1, ".2f"),
    ("processor_ratio", "processor's", 1, ".2f"),
    ("ours_over_floor", "x floor", 1, ".1f"),
    ("tokens_per_second", "tokens/s", 1, ".0f"),
    ("ours_bytes", "ours MiB", 2**-20, ".0f"),
    ("theirs_bytes", "theirs MiB", 2**-20, ".0f"),
    ("loss_difference", "loss differs", 1, ".0e"),
)


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    cells = "".join(
        f"{format(row[key] * factor, style) if row.get(key) is not None else '-':>13}"
        for key, _, factor, style in COLUMNS
    )
    shape = f"{row['batch']} x {row['length']}, {row['width']}, {row['blocks']}"
    return f"{row['name']:<17}{shape:<18}{cells}"


def main() -> None:
    """Print the table, one line as soon as it is known, and all numbers as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--length", type=int, help="only the steps of this length")
    parser.add_argument("--memory", action="store_true", help="bytes over the length instead")
    parser.add_argument("--peer-length", type=int, default=4096, help="the peer's longest: its memory is quadratic")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has the peer; '' for none")
    parser.add_argument("--json", help="file for the numbers")
    arguments = parser.parse_args()
    device = arguments.device
    cases = memory_cases() if arguments.memory else published_cases() if device == "cuda" else laptop_cases()
    if arguments.length is not None:
        cases = [case for case in cases if case.length == arguments.length]
    if device == "cpu":
        keep_freed_memory()  # as our trainer does
    machine = describe(device)
    rate = matrix_rate(device, torch.bfloat16 if device == "cuda" else torch.float32)
    machine["matrix_flops_per_second"] = rate
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{'':<17}{'batch, width, depth':<18}" + "".join(f"{title:>13}" for _, title, _, _ in COLUMNS))
    rows = []
    for case in cases:
        python = arguments.peer_python if case.length <= arguments.peer_length else None
        row = compare(case, arguments.rounds, device, python or None, rate)
        rows.append(row)
        print(line(row), flush=True)
        if arguments.json:  # whole after every row, whatever becomes of the next
            Path(arguments.json).write_text(json.dumps({"machine": machine, "steps": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
