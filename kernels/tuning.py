"""Launch options of Triton kernels, chosen by measurement and kept on disk.

Where a kernel first meets a chip, dtypes and tile sizes, Triton runs it with each of its options and takes the fastest;
the choice is kept in Triton's cache (TRITON_CACHE_DIR, `~/.triton/cache`), for later processes too. Lengths and batch
sizes are no part of what it is kept by. Options may order sums differently: runs that shall be equal bit for bit on
several machines share that folder. In the interpreter nothing is measured, and the first options are taken.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton


def tuned(
    *options: tuple[int, int], by: Sequence[str], restored: Sequence[str] = ()
) -> Callable[[Any], triton.runtime.Autotuner]:
    """Decorates a kernel with its options, (warps, stages of the pipeline) each, the safest first.

    `by`: the arguments by whose values a choice is kept, besides the tensors' dtypes. `restored`: tensors that the
    kernel both reads and writes, which each measurement must find as they were.
    """
    decorate: Callable[[Any], triton.runtime.Autotuner] = triton.autotune(
        [triton.Config({}, num_warps=warps, num_stages=stages) for warps, stages in options],
        key=list(by),
        restore_value=list(restored),
        prune_configs_by={"early_config_prune": _to_measure},
        do_bench=_measure,
        cache_results=True,
    )
    return decorate


def _measure(call: Callable[[], object], quantiles: Sequence[float]) -> Sequence[float]:
    """Milliseconds; none where there is no GPU, since before Triton 3.9 an option without rivals is measured too."""
    if triton.knobs.runtime.interpret:
        return [0.0] * len(quantiles)
    measured: Sequence[float] = triton.runtime.driver.active.get_benchmarker()(call, quantiles=quantiles)
    return measured


def _to_measure(configs: list[triton.Config], arguments: dict[str, Any], **_: Any) -> list[triton.Config]:
    on_gpu = any(isinstance(value, torch.Tensor) and value.is_cuda for value in arguments.values())
    return configs if on_gpu else configs[:1]
