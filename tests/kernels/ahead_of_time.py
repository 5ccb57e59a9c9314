"""Compiles Triton kernels for a GPU that need not be present, and reads what ptxas says of registers and spills.

Run as `python tests/kernels/ahead_of_time.py OPERATOR CAPABILITY`; prints one JSON object per kernel and shape.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

HALF = "*bf16"
SINGLE = "*fp32"


def mlstm_kernels() -> Iterator[tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Kernel, pointer types, constants and launch options for every published head dimension and the 16-head shape."""
    from kernels.mlstm import triton_chunkwise as kernels

    half = {"q", "k", "v", "h", "grad_h", "x", "y", "own", "out", "states", "states_C", "grads_C"}
    half |= {"scores", "d_products", "pairs"}
    for key_dim, value_dim in ((384, 384), (512, 512), (768, 768), (1024, 1024), (1280, 1280), (128, 256), (16, 48)):
        tiling = kernels.tiling_of(key_dim, value_dim, 128)
        for kernel, constants in (
            (kernels.states_kernel, {}),
            (kernels.scores_kernel, {"RESETS": True, "NORMALIZE": True}),
            (kernels.outputs_kernel, {}),
            (kernels.scores_backward_kernel, {"RESETS": True, "NORMALIZE": True}),
            (kernels.states_backward_kernel, {}),
            (kernels.inputs_backward_kernel, _through(tiling, True, True)),
            (kernels.inputs_backward_kernel, _through(tiling, True, False)),
            (kernels.inputs_backward_kernel, _through(tiling, False, True)),
        ):
            types = {name: HALF if name in half else SINGLE for name in kernel.arg_names}
            yield kernel.fn, types | {"segment": "*i32"}, tiling | constants, first_options(kernel)


def first_options(kernel: Any) -> dict[str, int]:
    """Of a tuned kernel: those that are taken where nothing is measured."""
    return {"num_warps": kernel.configs[0].num_warps, "num_stages": kernel.configs[0].num_stages}


def _through(tiling: dict[str, int], to_keys: bool, later: bool) -> dict[str, Any]:
    x, out = ("V", "K") if to_keys else ("K", "V")
    sizes = {"DX": tiling[f"D{x}"], "DO": tiling[f"D{out}"], "BX": tiling[f"B{x}"], "BO": tiling[f"B{out}"]}
    flags = {"TRANSPOSED_STATE": to_keys, "LATER": later, "HAS_VECTOR": to_keys, "HAS_DOTS": to_keys}
    return sizes | flags


def compile_one(
    kernel: Any, types: dict[str, str], constants: dict[str, Any], launch: dict[str, int], capability: int
) -> dict:
    """Shared memory, registers and spilled bytes of one kernel."""
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    strides = re.compile(r"^((grad|gate|skipped|[a-z])_[btr]|[a-gi-z]_h|h_h|(grad_)?stride)$")
    lengths = {"time", "chunks", "heads", "batch", "rows", "channels", "vocab", "ignored"}
    lengths |= {"numbers", "num_pairs", "angle_rows"}
    signature = {
        name: "i32" if strides.match(name) or name in lengths else types.get(name, "") for name in kernel.arg_names
    }
    signature |= dict.fromkeys(constants, "constexpr")
    # What a launch finds: pointers and strides are multiples of 16; lengths are not specialised.
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*" or strides.match(name)]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch)
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(compiled.asm["ptx"])
        ptxas = get_ptxas(capability).path
        arch = "sm_90a" if capability == 90 else f"sm_{capability}"
        said = subprocess.run(
            [ptxas, "-v", f"--gpu-name={arch}", ptx, "-o", os.devnull], capture_output=True, text=True
        )
    if said.returncode:
        raise RuntimeError(f"ptxas refused {kernel.__name__}: {said.stderr}{said.stdout}")
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill", said.stderr)]
    registers = re.search(r"Used (\d+) registers", said.stderr)
    return {
        "kernel": kernel.__name__,
        "constants": constants,
        "shared": compiled.metadata.shared,
        "spilled": sum(spilled),
        "registers": int(registers[1]) if registers else None,
    }


def slstm_kernels() -> Iterator[tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Kernel, pointer types, constants and launch options for every published head dimension, and the smallest."""
    from kernels.slstm import triton_scan as kernels

    for head_dim in (64, 192, 256, 384, 512, 640):
        for kernel in (kernels.forward_kernel, kernels.backward_kernel):
            types = {name: HALF if name in ("gates", "recurrent") else SINGLE for name in kernel.arg_names}
            constants = kernels.tiling_of(head_dim) | {"RESETS": True, "CLIP": True}
            types |= {"resets": "*i1", "clip": "fp32", "level": "*fp64"}
            yield kernel.fn, types, constants, first_options(kernel)


def block_kernels() -> Iterator[tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """What surrounds the mLSTM cell: the same, with 4 heads in an inner width of twice the published ones."""
    from kernels.block_diagonal import triton_blocks
    from kernels.causal_conv import triton_conv
    from kernels.gated_head_norm import triton_norm
    from kernels.rms_norm import triton_norm as triton_rms_norm
    from kernels.rotary import triton_turn
    from kernels.squared_relu import triton_relu
    from kernels.swiglu import triton_swiglu
    from kernels.token_shift import triton_shift

    blocks = triton_blocks.TILE | {"W": 4, "ROWS": triton_blocks.ROWS_PER_SUM}
    conv = triton_conv.TILE | {"TAPS": 4, "DOCUMENTS": True}
    cases = [
        (triton_blocks.times_kernel, blocks | {"TRANSPOSED": True}),
        (triton_blocks.times_kernel, blocks | {"TRANSPOSED": False}),
        (triton_blocks.weight_backward_kernel, blocks),
        (triton_conv.forward_kernel, conv),
        (triton_conv.backward_kernel, conv),
    ]
    for head_dim in (384, 512, 768, 1024, 1280):
        norm = triton_norm.tiling_of(head_dim) | {"SKIP": True, "ROWS": triton_norm.TOKENS_PER_SUM}
        cases += [(triton_norm.forward_kernel, norm), (triton_norm.backward_kernel, norm)]
    for width in (768, 1024, 1536, 2048, 2560):
        norm = triton_rms_norm.tiling_of(width) | {"ROWS": triton_rms_norm.ROWS_PER_SUM}
        cases += [(triton_rms_norm.forward_kernel, norm), (triton_rms_norm.backward_kernel, norm)]
    cases += [(kernel, triton_swiglu.TILE) for kernel in (triton_swiglu.forward_kernel, triton_swiglu.backward_kernel)]
    cases += [(kernel, triton_relu.TILE) for kernel in (triton_relu.forward_kernel, triton_relu.backward_kernel)]
    shift = triton_shift.TILE | {"RESETS": True, "ADD": True}
    cases += [(kernel, shift) for kernel in (triton_shift.forward_kernel, triton_shift.backward_kernel)]
    cases += [(triton_turn.turn_kernel, triton_turn.TILE | {"HEADS": 12, "HALF": 32})]
    for kernel, constants in cases:
        types = {name: SINGLE if name in ("parts", "scale", "cos", "sin") else HALF for name in kernel.arg_names}
        if kernel is triton_shift.backward_kernel:
            types |= {"grad_x": SINGLE, "grad_last": SINGLE}
        yield (
            kernel,
            types | {"documents": "*i32", "resets": "*i1", "eps": "fp32", "sign": "fp32"},
            constants,
            {"num_warps": 4},
        )


def loss_kernels() -> Iterator[tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Rows of logits, with and without a cap."""
    from kernels.linear_cross_entropy import triton_rows

    for kernel in (triton_rows.losses_kernel, triton_rows.gradients_kernel):
        for capped in (True, False):
            types = {"logits": HALF, "labels": "*i64", "losses": SINGLE, "log_z": SINGLE, "grads": SINGLE}
            types |= {"cap": "fp32", "z_loss": "fp32"}
            yield kernel, types, {"CAP": capped, "BLOCK": triton_rows.TILE}, {"num_warps": triton_rows.WARPS}


if __name__ == "__main__":
    for case in globals()[f"{sys.argv[1]}_kernels"]():
        print(json.dumps(compile_one(*case, capability=int(sys.argv[2]))), flush=True)
