"""What torch's own tracker says one rank holds, of a training step built for many ranks that are not there.

The process group is torch's fake one and tensors have shapes but no contents (`FakeTensorMode`): the step runs as the
trainer runs it, on any machine. AdamW's moments are added by their sizes: under DTensor, the tracker takes the whole
shapes that a fused step is planned with for memory.
"""

import contextlib

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.testing._internal.distributed.fake_pg import FakeStore

from xlstm.models import build
from xlstm.spec import RunSpec
from xlstm.training.gang import Gang
from xlstm.training.micro_batch import micro_batch
from xlstm.training.parallel import make_mesh, parallelize


def tracked_peak(spec: RunSpec) -> dict[str, int]:
    """Bytes by the tracker's kinds, `Total` among them, at the peak of at most two micro-batches of one step."""
    physics, execution = spec.physics, spec.execution
    rows = micro_batch(spec, None)
    with contextlib.ExitStack() as stack:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=execution.ranks)
        stack.callback(dist.destroy_process_group)
        mesh = make_mesh(execution, Gang(0, execution.ranks, 0, torch.device("cpu")))
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
            for _ in range(min(2, physics.batch_sequences // execution.ranks // rows)):
                tracker.reset_mod_stats()
                losses, _ = model(tokens, targets=torch.zeros_like(tokens))
                losses.sum().backward()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    kinds = {str(getattr(kind, "value", kind)): int(size) for kind, size in peak.items() if size}
    moments = 2 * sum(local.numel() * local.itemsize for local in locals_)
    return kinds | {"Moments": moments, "Total": kinds["Total"] + moments}
