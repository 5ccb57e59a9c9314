"""The closed form of a rank's memory beside what torch's own tracker says, for a step on ranks that are not there.

    python -m benchmarks.memory [--families llama mamba ...] [--size 2.7B] [--ranks 32] [--checkpointing full none]

The process group is torch's fake one and tensors have shapes but no contents (`FakeTensorMode`): the step runs as the
trainer runs it, on any machine, in half a minute to several (scans are slow to trace). AdamW's moments are added by
their sizes: under DTensor, the tracker takes the whole shapes that a fused step is planned with for memory. Not the
LSTM: torch's fused layer keeps its buffers where the tracker does not look.
"""

import argparse
import contextlib

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from xlstm.distributed import World
from xlstm.models import build
from xlstm.models.sizes import config_for
from xlstm.run.spec import Data, Execution, Optimizer, Physics, RunSpec, Schedule
from xlstm.training.memory import memory
from xlstm.training.micro_batch import micro_batch
from xlstm.training.parallel import make_mesh, parallelize

CONTEXT = 2048
FAMILIES = ("xlstm[1:0]", "xlstm[7:1]", "llama", "gpt", "mamba", "rwkv4")


def run_spec(
    family: str, size: str, ranks: int, micro: int, checkpointing: str, precision: str, passes: int = 1
) -> RunSpec:
    """A run of ten steps of so many passes at the published context, sharded over all ranks."""
    return RunSpec(
        physics=Physics(
            model=config_for(family, size, 50304),
            data=Data(corpus="text", revision="sha256:0", tokenizer="bytes", context_length=CONTEXT),
            tokens=10 * passes * CONTEXT * ranks * micro,
            batch_tokens=passes * CONTEXT * ranks * micro,
            optimizer=Optimizer(learning_rate=1e-3),
            schedule=Schedule(warmup_steps=3),
            precision=precision,  # type: ignore[arg-type]
        ),
        execution=Execution(
            device="cpu",
            devices=ranks,
            micro_batch_sequences=micro,
            activation_checkpointing=checkpointing,  # type: ignore[arg-type]
        ),
    )


def tracked_peak(spec: RunSpec) -> dict[str, int]:
    """Bytes by the tracker's kinds, `Total` among them, at the peak of at most two micro-batches of one step."""
    physics, execution = spec.physics, spec.execution
    rows = micro_batch(spec, None)
    with contextlib.ExitStack() as stack:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=execution.ranks)
        stack.callback(dist.destroy_process_group)
        mesh = make_mesh(execution, World(0, execution.ranks, torch.device("cpu")))
        stack.enter_context(FakeTensorMode())
        model = build(physics.model)
        parallelize(model, physics, execution, mesh)
        locals_ = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
        if hasattr(next(model.parameters()), "to_local"):
            tracker: MemTracker = FSDPMemTracker(model)
        else:
            tracker = MemTracker()
            tracker.track_external(model)
        tokens = torch.zeros((rows, physics.data.context_length), dtype=torch.int64)
        with tracker:
            passes = min(2, physics.batch_sequences // execution.ranks // rows)
            for number in range(passes):
                tracker.reset_mod_stats()
                if execution.ranks > 1:
                    model.set_requires_gradient_sync(number + 1 == passes)  # type: ignore[operator]
                losses, _ = model(tokens, targets=torch.zeros_like(tokens))
                losses.sum().backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    kinds = {str(getattr(kind, "value", kind)): int(size) for kind, size in peak.items() if size}
    moments = 2 * sum(local.numel() * local.itemsize for local in locals_)
    return kinds | {"Moments": moments, "Total": kinds["Total"] + moments}


def main() -> None:
    """One line per family and kind of checkpointing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--size", default="2.7B")
    parser.add_argument("--ranks", type=int, default=32)
    parser.add_argument("--checkpointing", nargs="+", default=["full"], choices=("none", "selective", "full"))
    arguments = parser.parse_args()
    print(f"{'family':12}{'checkpointing':>14}{'counted GiB':>13}{'tracked GiB':>13}{'ratio':>8}")
    for family in arguments.families:
        for checkpointing in arguments.checkpointing:
            spec = run_spec(family, arguments.size, arguments.ranks, 1, checkpointing, "bf16-mixed")
            counted, tracked = memory(spec).total / 2**30, tracked_peak(spec)["Total"] / 2**30
            print(f"{family:12}{checkpointing:>14}{counted:13.2f}{tracked:13.2f}{counted / tracked:8.3f}", flush=True)


if __name__ == "__main__":
    main()
