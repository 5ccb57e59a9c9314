"""Measuring the launch options of a kernel, which runs it again and again, leaves its results as they are."""

from typing import Any

import pytest
import torch
import triton

from kernels import tuning
from kernels.mlstm import mlstm, triton_chunkwise

TUNED = [kernel for kernel in vars(triton_chunkwise).values() if isinstance(kernel, triton.runtime.Autotuner)]


def results(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, final states and gradients."""
    leaves = [t.clone().requires_grad_() for t in tensors]
    h, state = mlstm(*leaves, implementation="triton")
    outputs = [h, *(part for part in state if part.requires_grad)]
    gradients = torch.autograd.grad([part.sum() for part in outputs], leaves)
    return [*outputs, *gradients]


def test_what_is_measured_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 1, 40, 16)] * 3 + [(2, 1, 40)] * 2
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    expected = results(*tensors)
    measured = set()

    def measure(call: Any, quantiles: Any) -> list[float]:
        call()
        call()
        return [float(len(measured) % 3)] * 3  # neither the first nor the last is always the fastest

    for kernel in TUNED:
        monkeypatch.setattr(kernel, "cache", {})
        monkeypatch.setattr(kernel, "early_config_prune", lambda configs, *_, **__: configs)
        monkeypatch.setattr(kernel, "do_bench", measure)
        monkeypatch.setattr(kernel, "_bench", counting(kernel, measured))
    actual = results(*tensors)
    assert measured == {
        (kernel.base_fn.__name__, config.num_warps, config.num_stages) for kernel in TUNED for config in kernel.configs
    }
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def counting(kernel: Any, measured: set[tuple[str, int, int]]) -> Any:
    """The kernel's measurement, which notes what it is called for."""
    bench = kernel._bench

    def noting(*arguments: Any, config: Any, **others: Any) -> Any:
        measured.add((kernel.base_fn.__name__, config.num_warps, config.num_stages))
        return bench(*arguments, config=config, **others)

    return noting


def test_nothing_is_measured_without_a_gpu() -> None:
    configs = TUNED[0].configs
    assert len(configs) > 1
    assert tuning._to_measure(configs, {"q": torch.zeros(1)}) == configs[:1]


def test_choices_are_kept_on_disk() -> None:
    if TUNED[0].fn.__class__.__name__ == "InterpretedFunction":
        pytest.skip("choices are kept where kernels are compiled: this machine has no GPU")
    assert all(kernel.cache_results for kernel in TUNED)
