"""What torch's own tracker says one rank holds, of a training step built for many ranks that are not there.

The process group is torch's fake one and tensors have shapes but no contents (`FakeTensorMode`): the step runs as the
trainer runs it, on any machine.
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
from xlstm.training.optimizer import build_optimizer, scale_gradients
from xlstm.training.parallel import make_mesh, parallelize


def tracked_peak(spec: RunSpec) -> dict[str, int]:
    """Bytes by the tracker's kinds, `Total` among them, at the peak of two steps of at most two micro-batches each."""
    physics, execution = spec.physics, spec.execution
    rows = micro_batch(spec, None)
    passes = min(2, physics.batch_sequences // execution.ranks // rows)
    with contextlib.ExitStack() as stack:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=execution.ranks)
        stack.callback(dist.destroy_process_group)
        mesh = make_mesh(execution, Gang(0, execution.ranks, 0, torch.device("cpu")))
        stack.enter_context(FakeTensorMode())
        model = build(physics.model)
        parallelize(model, physics, execution, mesh)
        optimizer = build_optimizer(model, physics.optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if hasattr(parameters[0], "to_local"):
            tracker: MemTracker = FSDPMemTracker(model, optimizer)
        else:
            tracker = MemTracker()
            tracker.track_external(model, optimizer)
        tokens = torch.zeros((rows, physics.data.context_length), dtype=torch.int64)
        with tracker:
            for _ in range(2):
                for _ in range(passes):
                    tracker.reset_mod_stats()
                    losses, _ = model(tokens, targets=torch.zeros_like(tokens))
                    losses.sum().backward()
                scale_gradients(parameters, physics.optimizer.gradient_clip)
                optimizer.step()
                optimizer.zero_grad()
        (peak,) = tracker.get_tracker_snapshot("peak").values()
    return {str(getattr(kind, "value", kind)): int(size) for kind, size in peak.items() if size}
