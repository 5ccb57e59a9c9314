"""The ranks of one run as a whole: they join a process group, and agree on numbers."""

import datetime
import os
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist

from xlstm.run.spec import Execution

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(minutes=30)
"""Last resort: the watchdog acts long before, and knows which rank is to blame."""


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def init(cls, execution: Execution) -> "World":
        """Join the other ranks, which torchrun's environment names. Sets the device and the number of threads.

        ValueError where torchrun started another number of ranks than the launch says, or there is no such device.
        """
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if size != execution.ranks:
            raise ValueError(f"{size} ranks were started, the launch says {execution.ranks}")
        cuda = execution.device == "cuda" or (execution.device == "auto" and torch.cuda.is_available())
        if cuda and local_rank >= torch.cuda.device_count():
            raise ValueError(f"rank {rank} needs GPU {local_rank}, this machine shows {torch.cuda.device_count()}")
        torch.set_num_threads(execution.threads_per_rank or max(1, (os.cpu_count() or 1) // execution.devices))
        device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        if "MASTER_PORT" not in os.environ:
            store = dist.HashStore() if size == 1 else None
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
        else:
            # Decisions are exchanged between CPUs, so that they never wait for the GPUs' queues.
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_TIMEOUT)
        return cls(rank, size, device)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes what is written once."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Element-wise sum over the ranks, in float64, equal on all of them."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def sum_on_device(self, value: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of a tensor in float64, on its own device, which nobody waits for."""
        total = value.double()
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on each of them."""
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def destroy(self) -> None:
        """Leave in an orderly way."""
        dist.destroy_process_group()
