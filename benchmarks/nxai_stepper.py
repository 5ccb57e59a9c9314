"""The other side of `benchmarks/block.py`: NX-AI's `xlstm`, a training step per line read from standard input.

A process of its own, started without this repository on its path: the peer's package is called `xlstm`, as ours is.
`request.json` and `weights.pt` lie in the folder named by the only argument. Prints the loss at the given weights
first, then one JSON object for each line: for `step`, seconds on the clock and of the processor; for `memory`, the
bytes that the step needed beyond what lay there.
"""

import ctypes
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from xlstm import (
    FeedForwardConfig,
    mLSTMBlockConfig,
    mLSTMLayerConfig,
    sLSTMBlockConfig,
    sLSTMLayerConfig,
    xLSTMLMModel,
    xLSTMLMModelConfig,
)

folder = Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
tensors = torch.load(folder / "weights.pt", weights_only=True)
device, heads = request["device"], request["num_heads"]
torch.set_num_threads(request["threads"])

slstm = sLSTMBlockConfig(
    slstm=sLSTMLayerConfig(backend="vanilla" if device == "cpu" else "cuda", num_heads=heads, conv1d_kernel_size=4),
    feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu"),
)
mlstm = mLSTMBlockConfig(mlstm=mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=heads))
with torch.device(device):
    model = xLSTMLMModel(
        xLSTMLMModelConfig(
            mlstm_block=mlstm,
            slstm_block=slstm,
            context_length=request["length"],
            num_blocks=request["num_blocks"],
            embedding_dim=request["embedding_dim"],
            slstm_at=request["slstm_at"],
            vocab_size=request["vocab_size"],
            tie_weights=False,
            dropout=0.0,
        )
    )
model.load_state_dict(tensors["weights"], strict=False)
part = model.xlstm_block_stack.blocks[0].xlstm if request["layer"] else model
optimizer = torch.optim.AdamW(part.parameters(), lr=0.0, fused=True)
inputs = tensors["inputs"].to(device)


def loss() -> torch.Tensor:
    with torch.autocast(device, dtype=torch.bfloat16, enabled=request["autocast"]):
        if request["layer"]:
            return part(inputs).square().mean()
        return F.cross_entropy(model(inputs).flatten(0, 1).float(), inputs.roll(-1, dims=1).flatten())


def resident(name: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS (now) or VmHWM (highest since `clear_refs`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def step() -> None:
    loss().backward()
    optimizer.step()
    optimizer.zero_grad()
    if device == "cuda":
        torch.cuda.synchronize()


def timed() -> dict[str, float]:
    begin, processor = time.perf_counter(), time.process_time()
    step()
    return {"seconds": time.perf_counter() - begin, "processor": time.process_time() - processor}


def memory() -> dict[str, int]:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return {"bytes": torch.cuda.max_memory_allocated() - before}
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed goes back, so that using it again is seen
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    return {"bytes": resident("VmHWM") - before}


with torch.no_grad():
    print(json.dumps(float(loss())), flush=True)
for line in sys.stdin:
    print(json.dumps({"step": timed, "memory": memory}[line.strip()]()), flush=True)
