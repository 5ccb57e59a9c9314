"""What the kernels compiled for CPUs share: whether they can run, what they refuse, and where they are kept."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from numba.core.caching import IndexDataCacheFile
from torch import Tensor

import kernels
from kernels import cpu
from kernels.attention import attention
from kernels.block_diagonal import block_diagonal
from kernels.causal_conv import causal_conv_silu
from kernels.cpu import compiler, runtime
from kernels.cpu.functions import f32, row
from kernels.cpu.table import Rows
from kernels.dispatch import ImplementationError, prefer
from kernels.gated_head_norm import gated_head_norm
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.long_convolution import long_convolution
from kernels.lstm import lstm
from kernels.mlstm import mlstm
from kernels.mlstm_inputs import mlstm_inputs
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary
from kernels.selective_scan import selective_scan
from kernels.slstm import slstm
from kernels.swiglu import swiglu
from kernels.token_shift import token_shift
from kernels.wkv import wkv

TIME, CHANNELS = 5, 8


def operands(batch: int) -> dict[Callable[..., Any], list[Tensor]]:
    """Of each operator that has kernels for CPUs."""
    x = torch.ones(batch, TIME, CHANNELS)
    vector, blocks, gate = torch.ones(CHANNELS), torch.ones(CHANNELS // 4, 4, 4), torch.ones(batch, 2, TIME)
    heads = x.unflatten(-1, (2, 4))
    return {
        attention: 3 * [heads.transpose(1, 2)],
        block_diagonal: [x, blocks],
        causal_conv_silu: [x, torch.ones(CHANNELS, 4), vector],
        gated_head_norm: [heads, vector, x],
        long_convolution: [x, torch.ones(3, CHANNELS)],
        mlstm: [*3 * [heads.transpose(1, 2)], gate, gate],
        mlstm_inputs: [x, x, blocks, blocks, blocks, torch.ones(4, 3 * CHANNELS), torch.ones(4)],
        rms_norm: [x, vector],
        rotary: [heads, heads, torch.ones(TIME, 2), torch.ones(TIME, 2)],
        selective_scan: [x, x, -torch.ones(CHANNELS, 3), torch.ones(batch, TIME, 3), torch.ones(batch, TIME, 3)],
        slstm: [torch.ones(batch, TIME, 4, 2, 4), torch.ones(4, 2, 4, 4)],
        swiglu: [x, x],
        token_shift: [x, torch.ones(3, CHANNELS)],
        wkv: [x, x, -vector, vector],
    }


RESETTING = (causal_conv_silu, mlstm, selective_scan, slstm, token_shift, wkv)
every_operator = pytest.mark.parametrize("operator", list(operands(1)), ids=lambda operator: operator.__name__)


@pytest.fixture
def preferring() -> Iterator[Callable[..., None]]:
    yield prefer
    prefer("auto")


@every_operator
def test_no_sequences_give_nothing(operator: Callable[..., Any]) -> None:
    inputs = [t.requires_grad_() for t in operands(0)[operator]]
    y = operator(*inputs)
    y = y[0] if isinstance(y, tuple | list) else y
    assert y.shape[0] == 0
    gradients = torch.autograd.grad(y.sum(), inputs, allow_unused=True)
    assert not any(gradient.any() for gradient in gradients if gradient is not None)


def test_no_channels_give_nothing() -> None:
    gate, up = (torch.ones(2, 3, 0, requires_grad=True) for _ in range(2))
    y = swiglu(gate, up)
    assert y.shape == (2, 3, 0)
    assert torch.autograd.grad(y.sum(), gate)[0].shape == (2, 3, 0)


@every_operator
def test_shapes_alone_are_enough_on_the_meta_device(operator: Callable[..., Any]) -> None:
    on_meta, on_cpu = operator(*(t.to("meta") for t in operands(2)[operator])), operator(*operands(2)[operator])
    a, b = ((y[0] if isinstance(y, tuple | list) else y) for y in (on_meta, on_cpu))
    assert (a.device.type, a.shape) == ("meta", b.shape)


@every_operator
def test_no_operand_on_another_device_is_read(operator: Callable[..., Any]) -> None:
    given = operands(1)[operator]
    for place in range(1, len(given)):
        elsewhere = [t.to("meta") if n == place else t for n, t in enumerate(given)]
        with pytest.raises(ImplementationError, match="on meta; it is for CPUs"):
            operator(*elsewhere, implementation="numba")


@pytest.mark.parametrize("implementation", ["auto", "reference", "numba"])
def test_resets_that_are_no_booleans_are_refused(implementation: str) -> None:
    given, resets = operands(1), torch.zeros(1, TIME, dtype=torch.int64)
    for operator in RESETTING:
        with pytest.raises(ValueError, match=rf"{operator.__name__}: resets are torch.int64, expected torch.bool"):
            operator(*given[operator], resets=resets, implementation=implementation)
    weights = [torch.ones(4 * CHANNELS, CHANNELS)] * 2 + [torch.ones(4 * CHANNELS)] * 2
    with pytest.raises(ValueError, match=r"lstm: resets are torch.int64, expected torch.bool"):
        lstm(torch.ones(1, TIME, CHANNELS), *weights, resets=resets)


def test_resets_may_lie_in_any_order() -> None:
    given, resets = operands(2), torch.zeros(2, TIME, dtype=torch.bool)
    resets[1, 3] = True
    turned = resets.t().contiguous().t()
    for operator in RESETTING:
        a, b = (operator(*given[operator], resets=r, implementation="numba")[0] for r in (turned, resets))
        assert torch.equal(a, b)


def _body(first, last, xs: Rows, width: int, scale: float, shift: Rows | None):  # type: ignore[no-untyped-def]
    for r in range(first, last):
        for d in range(width):
            row(xs, r)[d] += f32(d) * scale


count_up = cpu.kernel(_body)


def test_what_a_kernel_would_misread_is_refused() -> None:
    x = torch.zeros(3, 4)
    cpu.run(count_up, 3, xs=x, width=4, scale=1.0, shift=None)
    assert torch.equal(x, torch.arange(4.0).expand(3, 4))
    for wrong in (x.t(), x.to("meta"), torch.zeros(1, 1, 1, 1, 1, 4)):
        with pytest.raises(ValueError, match=r"test_cpu_kernels\._body: xs is on"):
            cpu.run(count_up, 1, xs=wrong, width=1, scale=1.0, shift=None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 4.0}, "width is a float, expected int"),
        ({"scale": 1}, "scale is a int, expected float"),
        ({"xs": None}, "xs is a NoneType, expected Rows"),
        ({"xs": torch.zeros(3, 4).double()}, r"xs is of torch\.float64, expected torch\.float32"),
        ({"shift": torch.zeros(3, dtype=torch.bool)}, r"shift is of torch\.bool, expected torch\.float32"),
        ({"widht": 4}, "missing is nothing, unknown is widht"),
    ],
)
def test_what_is_not_of_its_kind_is_refused_by_name(changed: dict[str, Any], message: str) -> None:
    given = {"xs": torch.zeros(3, 4), "width": 4, "scale": 1.0, "shift": None}
    with pytest.raises(TypeError, match=rf"test_cpu_kernels\._body: {message}"):
        cpu.run(count_up, 3, **(given | changed))
    with pytest.raises(TypeError, match=r"_body: missing is scale, unknown is nothing"):
        cpu.run(count_up, 3, xs=given["xs"], width=4, shift=None)


def test_a_parameter_must_say_what_it_is() -> None:
    def body(first, last, xs: Tensor):  # type: ignore[no-untyped-def]
        pass

    with pytest.raises(TypeError, match=r"body: xs is annotated .*Tensor.*, which is no kind of argument"):
        cpu.kernel(body)


def test_a_preference_is_one_where_there_are_such_kernels(preferring: Callable[..., None]) -> None:
    preferring("numba")
    hidden, targets = torch.ones(2, 8), torch.zeros(2, dtype=torch.long)
    assert linear_cross_entropy(hidden, torch.ones(5, 8), targets).shape == (2,)
    with pytest.raises(ImplementationError, match="no kernels for CPUs"):
        linear_cross_entropy(hidden, torch.ones(5, 8), targets, implementation="numba")
    with pytest.raises(ImplementationError, match=r"torch\.float64 is not supported"):
        swiglu(hidden.double(), hidden.double())
    preferring("triton")
    assert attention(*torch.ones(3, 1, 2, 5, 8)).shape == (1, 2, 5, 8)


def test_what_is_missing_has_a_reason_and_auto_does_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert runtime._library(tmp_path) is None
    assert "libtorch_cpu does not lie" in (runtime._missing(None) or "")

    def fail(name: str) -> None:
        raise ImportError("Numba needs NumPy 2.3 or less")

    with monkeypatch.context() as without:
        without.setattr(runtime.importlib, "import_module", fail)
        reason = runtime._missing(runtime.OPENMP)
    assert reason == "numba cannot be imported: Numba needs NumPy 2.3 or less"
    monkeypatch.setattr(runtime, "MISSING", reason)
    x = torch.ones(2, 8)
    assert swiglu(x, x).shape == (2, 8)
    with pytest.raises(ImplementationError, match="Numba needs NumPy"):
        swiglu(x, x, implementation="numba")


@pytest.mark.parametrize(
    "changed", ["wkv/reference.py", "block_diagonal/numba_blocks.py", "cpu/table.py", "one_more.py"]
)
def test_no_kernel_outlives_a_file_it_may_be_made_of(
    changed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "kernels"
    shutil.copytree(Path(kernels.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(compiler, "__file__", str(package / "cpu" / "compiler.py"))
    before = compiler._stamp.__wrapped__()
    assert before == compiler._stamp.__wrapped__() == compiler._stamp()
    with (package / changed).open("a") as file:
        file.write("# changed\n")
    assert compiler._stamp.__wrapped__() != before


def test_processors_of_different_kinds_share_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    codegen = type(compiler.cpu_target.target_context.codegen())
    monkeypatch.setattr(codegen, "magic_tuple", lambda self: ("x86_64-unknown-linux-gnu", "another", "+avx"))
    assert compiler._stamp.__wrapped__() != compiler._stamp()


def test_a_full_cache_folder_costs_the_cache_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(self: Any, key: Any, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(IndexDataCacheFile, "save", fail)
    assert compiler.compiled(_body)
    assert not list(tmp_path.rglob("*.nbc"))


MLSTM_OF_MANY_HEADS = """
import sys, torch
from kernels.mlstm import mlstm
torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
shapes = ((1, 16, 100, 64), (1, 16, 100, 64), (1, 16, 100, 48), (1, 16, 100), (1, 16, 100))
h, _ = mlstm(*(torch.randn(shape, generator=draw) for shape in shapes), implementation="numba")
sys.stdout.buffer.write(h.numpy().tobytes())
"""


@pytest.mark.slow
def test_a_kernel_rounds_alike_where_it_was_compiled_and_where_it_comes_from_the_cache(tmp_path: Path) -> None:
    command, variables = [sys.executable, "-c", MLSTM_OF_MANY_HEADS], os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    compiled, kept = (subprocess.run(command, env=variables, stdout=subprocess.PIPE, check=True) for _ in range(2))
    assert len(compiled.stdout) == 4 * 16 * 100 * 48
    assert kept.stdout == compiled.stdout


def test_kernels_are_compiled_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = numba.config.CACHE_LOCATOR_CLASSES, []

    def address(body: Any, keep: bool) -> int:
        seen.append(numba.config.CACHE_LOCATOR_CLASSES)
        time.sleep(0.02)
        return 1

    monkeypatch.setattr(compiler, "_address", address)
    threads = [threading.Thread(target=compiler.compiled, args=(_body,)) for _ in "abc"]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert seen == 3 * ["kernels.cpu.compiler.ByContent"]
    assert before == numba.config.CACHE_LOCATOR_CLASSES


def test_products_have_the_tiles_of_the_chip_that_is_compiled_for() -> None:
    older = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    command = [sys.executable, "-c", "from kernels.cpu import products; print(products.COLUMNS)"]
    said = subprocess.run(command, env=older, check=True, text=True, capture_output=True, cwd=Path(__file__).parents[2])
    assert int(said.stdout) == 16
