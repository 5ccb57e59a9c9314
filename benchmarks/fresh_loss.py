"""The loss of a fresh model of every family at every published size, beside ln(vocabulary).

    python -m benchmarks.fresh_loss [--families llama mamba ...] [--sizes 125M 350M ...] [--memory-gib 16]

One model at a time, initialised in place in float32, on random tokens in inference mode. Nothing has been learnt: the
best a model can say is 1 / vocabulary, a loss of ln(50304) = 10.826. A model whose parameters need more than
`--memory-gib` is left out, and the table says so. Writes benchmarks/results/fresh_loss.json and .md.
"""

import argparse
import gc
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import describe
from xlstm.accounting import parameters
from xlstm.models import build
from xlstm.models.sizes import config_for
from xlstm.training.parallel import init_weights

RESULTS = Path(__file__).parent / "results"
FAMILIES = ("xlstm[1:0]", "xlstm[7:1]", "llama", "gpt", "mamba", "rwkv4", "lstm")
SIZES = ("125M", "350M", "760M", "1.3B", "2.7B")
VOCABULARY = 50304
BATCH, TIME = 2, 64


def fresh_loss(family: str, size: str, seed: int = 0) -> float:
    """Mean loss in nats of a fresh model on random tokens."""
    with torch.device("meta"):
        model = build(config_for(family, size, VOCABULARY))
    model.to_empty(device="cpu")
    init_weights(model, seed)
    tokens = torch.randint(VOCABULARY, (BATCH, TIME + 1), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return float(model(tokens[:, :-1], targets=tokens[:, 1:])[0].mean())


def main() -> None:
    """Every family at every size, and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--memory-gib", type=float, default=16.0)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for size in arguments.sizes:
        for family in arguments.families:
            count = parameters(config_for(family, size, VOCABULARY)).total
            row: dict[str, Any] = {"family": family, "size": size, "parameters": count, "loss": None}
            if 4 * count <= arguments.memory_gib * 2**30:
                began = time.perf_counter()
                row["loss"] = fresh_loss(family, size)
                gc.collect()
                deviation = row["loss"] / math.log(VOCABULARY) - 1
                print(
                    f"{family:12}{size:>6} {row['loss']:.4f} {deviation:+.2%} {time.perf_counter() - began:.0f} s",
                    flush=True,
                )
            rows.append(row)
    result = {"machine": describe("cpu"), "vocabulary": VOCABULARY, "rows": rows}
    (RESULTS / "fresh_loss.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "fresh_loss.md").write_text(table(rows))
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Losses by family and size."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    lines = [
        f"Loss of a fresh model in nats per token; ln({VOCABULARY}) = {math.log(VOCABULARY):.3f}.",
        "",
        f"| family | {' | '.join(sizes)} |",
        f"| --- |{' --- |' * len(sizes)}",
    ]
    for family in dict.fromkeys(row["family"] for row in rows):
        mine = {row["size"]: row["loss"] for row in rows if row["family"] == family}
        cells = ["does not fit here" if mine[size] is None else f"{mine[size]:.3f}" for size in sizes]
        lines.append(f"| `{family}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
