"""The Triton kernels of the scans compile ahead of time for the GPUs they are meant for, without one being present."""

import os
import subprocess
import sys

import pytest

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.{operator} import triton_scan

constants = {constants!r}
for kernel in (triton_scan._forward_kernel, triton_scan._backward_kernel):
    signature = {{name: "i32" for name in kernel.arg_names}}
    signature |= {{name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}}
    signature |= {{name: "*bf16" for name in kernel.arg_names if name.removesuffix("_ptr") in {half!r}}}
    signature |= {{"resets_ptr": "*u8"}} | {{name: "constexpr" for name in constants}}
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants), target=GPUTarget("cuda", {capability}, 32)
    )
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= 48 * 1024, compiled.metadata.shared
    print(kernel.__name__)
"""


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("operator", "half", "constants"),
    [
        (
            "selective_scan",
            {"u", "delta", "B", "C", "y", "dy", "du", "ddelta"},
            {"BLOCK_T": 32, "BLOCK_D": 8, "BLOCK_N": 16, "HAS_RESETS": True},
        ),
        ("linear_recurrence", {"x", "dx"}, {"BLOCK_T": 32, "BLOCK_C": 64, "HAS_RESETS": True}),
        ("wkv", {"k", "v", "y", "dy", "dk", "dv"}, {"BLOCK_T": 32, "BLOCK_C": 32, "HAS_RESETS": True}),
    ],
)
def test_kernels_compile_without_a_gpu(operator: str, half: set, constants: dict, capability: int) -> None:
    script = COMPILE.format(operator=operator, half=half, constants=constants, capability=capability)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    finished = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == ["_forward_kernel", "_backward_kernel"]
