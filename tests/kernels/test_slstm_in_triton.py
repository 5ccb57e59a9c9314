"""The sLSTM's Triton kernels: programs that meet at every step, and a launch a step, are the same function."""

import inspect
import itertools
import threading
from typing import Any
from unittest import mock

import pytest
import torch
from triton.runtime import interpreter

from kernels.slstm import slstm, triton_scan


class AtOnce(type(interpreter.interpreter_builder)):  # type: ignore[misc]
    """The interpreter, with a place in the grid for every thread."""

    _place = threading.local()

    @property
    def grid_idx(self) -> Any:
        return self._place.idx

    @grid_idx.setter
    def grid_idx(self, idx: Any) -> None:
        self._place.idx = idx


def launched_at_once(launch: Any, *arguments: Any, **options: Any) -> None:
    """Interprets all programs of a grid at the same time, each in a thread: a cooperative launch."""
    assert options["launch_cooperative_grid"]
    names = inspect.getfullargspec(launch.fn).args
    given = inspect.getcallargs(launch.fn, *arguments, **{k: v for k, v in options.items() if k in names})
    given = {k: v if k in launch.constexprs else interpreter._implicit_cvt(v) for k, v in given.items()}
    failed: list[BaseException] = []

    def program(idx: tuple[int, ...]) -> None:
        interpreter.interpreter_builder.set_grid_idx(*idx)
        try:
            launch.fn(**given)
        except BaseException as problem:
            failed.append(problem)

    scope = interpreter._patch_lang(launch.fn)
    try:
        interpreter.interpreter_builder.set_grid_dim(*launch.grid)
        threads = [threading.Thread(target=program, args=(i,)) for i in itertools.product(*map(range, launch.grid))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        scope.restore()
    assert not failed, failed


def test_programs_that_meet_are_a_launch_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    gates = torch.randn(18, 3, 4, 2, 32, generator=generator).half().requires_grad_()
    recurrent = (torch.randn(4, 2, 32, 32, generator=generator) / 5).half().requires_grad_()
    resets = torch.rand(18, 3, generator=generator) < 0.2
    pushed = torch.randn(18, 3, 2, 32, generator=generator).half()

    def step() -> list[torch.Tensor]:
        h, state = slstm(gates, recurrent, resets=resets, gradient_clip=0.05, implementation="triton")
        return [h, *state, *torch.autograd.grad(h, (gates, recurrent), pushed)]

    expected = step()
    monkeypatch.setattr(interpreter.interpreter_builder, "__class__", AtOnce)
    for programs in (4, 8):  # two groups of sequences: one after the other, both at once
        with (
            mock.patch.object(triton_scan, "programs_at_once", return_value=programs),
            mock.patch.object(interpreter.GridExecutor, "__call__", launched_at_once),
        ):
            assert all(map(torch.equal, step(), expected))


def test_programs_are_as_many_as_a_chip_holds_at_once() -> None:
    """H200 and A100 by their multiprocessors, shared memory in CUDA's programming guide."""
    for count, memory, head_dim, expected in ((132, 228, 512, 264), (108, 164, 512, 216), (108, 164, 640, 108)):
        chip = mock.Mock(multi_processor_count=count, shared_memory_per_multiprocessor=memory * 1024)
        with (
            mock.patch.object(torch.cuda, "get_device_properties", return_value=chip),
            mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False) as capturing,
        ):
            at_once = triton_scan.programs_at_once(torch.device("cuda"), head_dim, torch.bfloat16)
            assert at_once == expected
            capturing.return_value = True
            assert triton_scan.programs_at_once(torch.device("cuda"), head_dim, torch.bfloat16) == 0
