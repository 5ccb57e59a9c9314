"""What the compiler says of every Triton kernel, for a GPU that need not be present: as launched, and for every option.

    python -m benchmarks.ahead_of_time                        all at the published shapes: results/ahead_of_time.md
    python -m benchmarks.ahead_of_time --some --capability 80 a part of it, one JSON object a line

The operators are called with tensors on the CPU, and what they launch is noted instead of run: Triton then says itself
which arguments are constants or multiples of 16. Registers, stack (where registers are spilled to) and shared memory
are read from the machine code, loads and matrix products from what it is compiled from.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import KernelInterface, create_function_from_signature

from kernels import dispatch
from kernels.block_diagonal import block_diagonal
from kernels.causal_conv import causal_conv_silu
from kernels.gated_head_norm import gated_head_norm
from kernels.gated_linear_attention import gated_linear_attention
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.linear_recurrence import linear_recurrence
from kernels.mlstm import mlstm
from kernels.mlstm_inputs import mlstm_inputs
from kernels.rms_norm import rms_norm
from kernels.rotary import rotary
from kernels.selective_scan import selective_scan
from kernels.slstm import slstm, triton_scan
from kernels.squared_relu import squared_relu
from kernels.swiglu import swiglu
from kernels.token_shift import token_shift
from kernels.wkv import wkv

RESULTS = Path(__file__).with_name("results") / "ahead_of_time.md"
HEADS = (384, 512, 768, 1024, 1280)
"""Head dimensions of the published xLSTM[1:0], of which there are four; half of that the width of the model."""
SHARED_MEMORY = {80: 164 * 1024, 90: 228 * 1024}
"""Bytes of a multiprocessor, CUDA C++ programming guide, technical specifications per compute capability; a block takes
1 KiB more than it asks for."""
REGISTERS = 65536
STATES = {
    "states_C", "states_n", "grads_C", "grads_n", "states", "vector", "written", "reading", "initial_C", "final_C",
    "first_C", "grad_C", "written_ptr", "read_ptr", "starts_ptr", "grads_ptr",
}  # fmt: skip
"""Arguments of the kernels of matrix memories that hold states, or chunks of all sequences: they pass 2^31 elements."""


class Launch(NamedTuple):
    """One kernel as it was launched: what Triton compiles it from, and the options it may be launched with."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: list[dict[str, int]]

    @property
    def key(self) -> str:
        """Equal for launches that compile to the same."""
        return f"{self.kernel.fn.__module__} {self.kernel.__name__} {self.signature} {self.constants} {self.attributes}"

    @property
    def variant(self) -> str:
        """The kernel's name, with the flags that it is compiled for."""
        names = list(self.signature)
        flags = [names[path[0]] for path, value in self.constants.items() if value is True]
        return " ".join([self.kernel.__name__, *(flag.lower() for flag in flags)])


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A leaf of the autograd graph."""
    return torch.randn(shape).to(dtype).requires_grad_()


def _by_head(batch: int, time: int, heads: int, dim: int, dtype: torch.dtype) -> Tensor:
    return normal(batch, time, heads * dim, dtype=dtype).unflatten(-1, (heads, dim)).transpose(1, 2)


def _resets(batch: int, time: int) -> Tensor:
    return torch.zeros(batch, time, dtype=torch.bool)


def dtypes(some: bool) -> tuple[tuple[str, torch.dtype], ...]:
    """What every shape is compiled for, and how that is called."""
    both = (("", torch.bfloat16), (", float32", torch.float32))
    return both[: 1 if some else None]


def mlstm_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The cell at the published head dimensions, and at those of 16 heads."""
    shapes = [(4, size, size) for size in HEADS] + [(16, 128, 256)]
    for heads, key_dim, value_dim in shapes[:1] if some else shapes:
        for label, dtype in dtypes(some):

            def call(heads: int = heads, key: int = key_dim, value: int = value_dim, dtype: Any = dtype) -> Tensor:
                q, k, v = (_by_head(1, 512, heads, dim, dtype) for dim in (key, key, value))
                i, f = (normal(1, 512, heads, dtype=torch.float32).transpose(1, 2) for _ in range(2))
                return mlstm(q, k, v, i, f, resets=_resets(1, 512), implementation="triton")[0]

            yield f"{heads} × {key_dim}/{value_dim}{label}", call


def slstm_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The sLSTM at the published head dimensions, in one launch and in a launch a step."""
    forms: list[tuple[str, int, torch.dtype]] = [("", 2**20, torch.bfloat16)]
    forms += [(", a launch a step", 0, torch.bfloat16), (", float32", 2**20, torch.float32)]
    for dim in (512,) if some else [size // 2 for size in HEADS]:
        for form, programs, dtype in forms[: 1 if some else None]:

            def call(dim: int = dim, programs: int = programs, dtype: torch.dtype = dtype) -> list[Tensor]:
                tensors = normal(4, 16, 4, 4, dim, dtype=dtype), normal(4, 4, dim, dim, dtype=dtype)
                with mock.patch.object(triton_scan, "programs_at_once", return_value=programs):
                    h, _ = slstm(*tensors, resets=_resets(4, 16), gradient_clip=10.0, implementation="triton")
                    h.backward(torch.randn_like(h))
                return []

            yield f"4 × {dim}{form}", call


def block_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What surrounds the mLSTM cell, in the inner width of four heads."""
    for (label, dtype), size in itertools.product(dtypes(some), (384,) if some else HEADS):

        def call(width: int = 4 * size, size: int = size, dtype: torch.dtype = dtype) -> list[Tensor]:
            drawn = partial(normal, dtype=dtype)
            inner, gate = drawn(2, 64, 2 * width).chunk(2, dim=-1)
            convolved = causal_conv_silu(
                inner, drawn(width, 4), drawn(width), resets=_resets(2, 64), implementation="triton"
            )[0]
            normed = gated_head_norm(
                _by_head(2, 64, 4, size, dtype).transpose(1, 2), drawn(width), gate,
                skipped=convolved, skip=drawn(width), implementation="triton",
            )  # fmt: skip
            maps = [drawn(width // 4, 4, 4) for _ in range(4)]
            mapped = mlstm_inputs(
                convolved, inner, *maps[:3], drawn(8, 3 * width), drawn(8), implementation="triton"
            )  # fmt: skip
            return [block_diagonal(convolved, maps[3], implementation="triton"), normed, *mapped]

        yield f"width {4 * size}{label}", call


def others_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Operators of the other models, in the widths of the published sizes."""
    for (label, dtype), width in itertools.product(dtypes(some), (768,) if some else [2 * size for size in HEADS]):

        def call(width: int = width, dtype: torch.dtype = dtype) -> list[Tensor]:
            drawn = partial(normal, dtype=dtype)
            x, by = drawn(2, 64, width), {"implementation": "triton"}
            angles = torch.randn(64, 32)
            turned = rotary(*(drawn(2, 64, width // 64, 64) for _ in range(2)), angles.cos(), angles.sin(), **by)
            mixed = token_shift(x, drawn(2, width), last=drawn(2, width), resets=_resets(2, 64), **by)
            outputs = [rms_norm(x, drawn(width), **by), swiglu(x, drawn(2, 64, width), **by), squared_relu(x, **by)]
            return [*turned, *mixed, *outputs]

        yield f"width {width}{label}", call


def scan_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Of Mamba and RWKV-4, whose tiles do not depend on the width."""
    for label, dtype in dtypes(some):

        def call(dtype: torch.dtype = dtype) -> list[Tensor]:
            drawn = partial(normal, dtype=dtype)
            by: dict[str, Any] = {"resets": _resets(2, 64), "implementation": "triton"}
            u, delta, B, C = drawn(2, 64, 1536), drawn(2, 64, 1536), drawn(2, 64, 16), drawn(2, 64, 16)
            rates = normal(1536, 16, dtype=torch.float32)
            scanned = selective_scan(u, delta, rates, B, C, **by)[0]
            decay, bonus = (normal(768, dtype=torch.float32) for _ in range(2))
            return [scanned, wkv(drawn(2, 64, 768), drawn(2, 64, 768), decay, bonus, **by)[0]]

        yield f"width 768{label}", call


def linear_attention_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Heads of RWKV, of HGRN2 and of GLA at 350M; and HGRN's recurrence, whose tiles do not depend on the width."""
    shapes = [(16, 64, 64), (8, 128, 128), (4, 128, 256)]
    for (label, dtype), (heads, key_dim, value_dim) in itertools.product(dtypes(some), shapes[: 1 if some else None]):

        def call(
            heads: int = heads, key_dim: int = key_dim, value_dim: int = value_dim, dtype: torch.dtype = dtype
        ) -> list[Tensor]:
            q, k, v = (normal(1, 128, heads, dim, dtype=dtype) for dim in (key_dim, key_dim, value_dim))
            g = normal(1, 128, heads, key_dim, dtype=torch.float32)
            by: dict[str, Any] = {"resets": _resets(1, 128), "implementation": "triton"}
            x, decay = normal(2, 64, 768, dtype=dtype), normal(2, 64, 768, dtype=torch.float32)
            return [
                gated_linear_attention(q, k, v, g, **by)[0],
                linear_recurrence(x, decay, resets=_resets(2, 64), implementation="triton"),
            ]

        yield f"{heads} × {key_dim}/{value_dim}{label}", call


def loss_shapes(some: bool) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Rows of logits of a vocabulary that is a multiple of 16, and of one that is none."""
    for (label, dtype), vocab in itertools.product(dtypes(some), (50304,) if some else (50304, 50257)):

        def call(vocab: int = vocab, dtype: torch.dtype = dtype) -> list[Tensor]:
            hidden, weight = normal(2, 8, 64, dtype=dtype), normal(vocab, 64, dtype=dtype)
            targets, caps = torch.zeros(2, 8, dtype=torch.int64), (None,) if some else (None, 30.0)
            return [linear_cross_entropy(hidden, weight, targets, soft_cap=c, implementation="triton") for c in caps]

        yield f"vocabulary {vocab}{label}", call


GROUPS = {
    "mLSTM": mlstm_shapes,
    "sLSTM": slstm_shapes,
    "block": block_shapes,
    "others": others_shapes,
    "scans": scan_shapes,
    "linear attention": linear_attention_shapes,
    "loss": loss_shapes,
}


@contextlib.contextmanager
def noting(note: Callable[[Any, tuple[Any, ...], dict[str, Any]], None]) -> Iterator[None]:
    """While open, launches of Triton kernels are noted, (kernel, arguments, options), and not run; CPU tensors do."""

    def getitem(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **options: note(kernel, arguments, options)

    with (
        mock.patch.object(KernelInterface, "__getitem__", getitem),
        mock.patch.object(dispatch, "triton_obstacle", return_value=None),
    ):
        yield


def launches(call: Callable[[], Any], capability: int) -> list[Launch]:
    """What a function of tensors launches, forward and backward."""
    backend = triton.compiler.make_backend(GPUTarget("cuda", capability, 32))
    found: dict[str, Launch] = {}

    def note(kernel: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        tuned = getattr(kernel, "configs", None)
        kernel = kernel.fn if tuned else kernel
        bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, rest = bind(*arguments, **given)
        _, signature, constants, attributes = kernel._pack_args(backend, given, bound, specialization, rest)
        warps, stages = given.get("num_warps", 4), given.get("num_stages", 3)
        options = [(c.num_warps, c.num_stages) for c in tuned] if tuned else [(warps, stages)]
        named = [{"num_warps": warps, "num_stages": stages} for warps, stages in options]
        launch = Launch(kernel, signature, constants, attributes, named)
        found.setdefault(launch.key, launch)

    with noting(note):
        outputs = call()
        outputs = outputs if isinstance(outputs, list) else [outputs]
        torch.autograd.backward(outputs, [torch.randn(out.shape).to(out.dtype) for out in outputs])
    return list(found.values())


def compiled(launch: Launch, options: dict[str, int], capability: int) -> dict[str, Any]:
    """What the compiler says of one kernel with one set of options."""
    source = ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
    result = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    usage = _usage(result.asm["cubin"])
    threads, shared = 32 * options["num_warps"], result.metadata.shared
    registers = -(-usage["REG"] // 8) * 8
    ptx = result.asm["ptx"]
    loads = re.findall(r"ld\.global[^\s]*", ptx)
    return {
        "kernel": launch.variant,
        "warps": options["num_warps"],
        "stages": options["num_stages"],
        "registers": usage["REG"],
        "stack": usage["STACK"],
        "shared": shared,
        "blocks": min(
            REGISTERS // (registers * threads), SHARED_MEMORY[capability] // (shared + 1024), 2048 // threads
        ),
        "loads of 16 bytes": sum(".v4.b32" in load or ".v2.b64" in load for load in loads)
        + len(re.findall(r"cp\.async\.cg\.shared\.global[^;]*, 0x10", ptx)),
        "loads of 2 bytes": sum(load.endswith((".b16", ".u16")) and ".v" not in load for load in loads),
        "register operands": len(re.findall(r"warp_group_dot (?!wait)[^\n]*: tensor<[^\n]*\* ", result.asm["ttgir"])),
        "narrow products": narrow_products(result.asm["ttir"]),
        "open waits": open_waits(ptx),
        # Of what other programs write, before the wait for them.
        "early reads": ptx.partition(".acquire.")[0].count("ld.global.cg") if ".acquire." in ptx else 0,
    }


def _usage(cubin: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = triton.knobs.nvidia.cuobjdump.path
        said = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK):(\d+)", said)}


def open_waits(ptx: str) -> int:
    """How many waits for products are followed by copies or stores to shared memory before all warps have met.

    Another warp group may still read there (triton-lang/triton issue 11047).
    """
    met, found = True, 0
    for step in re.findall(r"wgmma\.wait_group|bar\.sync|cp\.async\.c[ag]\.shared|st\.shared", ptx):
        if step.startswith("cp") or step == "st.shared":
            found += not met
        met = step != "wgmma.wait_group" and (met or step == "bar.sync")
    return found


def narrow_products(ttir: str) -> int:
    """How many offsets into states, of those that are one number, come of a product of 32 bits."""
    defined = dict(re.findall(r"(%[\w#]+)(?::\d+)? = (.*)", ttir))

    def is_product(value: str, seen: frozenset[str] = frozenset()) -> bool:
        made = defined.get(value, "")
        if value in seen or "tensor<" in made:
            return False
        if made.startswith("arith.muli") and re.search(r": i32\b", made):
            return True
        chain = made.startswith(("arith.addi", "arith.muli", "arith.extsi", "tt.addptr"))
        return chain and any(is_product(one, seen | {value}) for one in re.findall(r"%[\w#]+", made))

    def root(pointer: str) -> str:
        made = defined.get(pointer, "")
        return root(made.split()[1].rstrip(",")) if made.startswith("tt.addptr") else pointer[1:].partition("#")[0]

    found = re.findall(r"= tt\.addptr (%[\w#]+), (%[\w#]+) : !tt\.ptr<", ttir)
    return sum(root(pointer) in STATES and is_product(offset) for pointer, offset in found)


def rows(groups: Iterable[str], capability: int, some: bool, workers: int) -> Iterator[dict[str, Any]]:
    """A row for every kernel, shape and option; with `some`, of few shapes and of the first option."""
    seen: set[str] = set()
    work = []
    for group in groups:
        for shape, call in GROUPS[group](some):
            for launch in launches(call, capability):
                if launch.key not in seen:
                    seen.add(launch.key)
                    options = launch.options[:1] if some or "float32" in shape else launch.options
                    work += [({"operator": group, "shape": shape}, launch, one) for one in options]
    if workers == 1:
        for label, launch, options in work:
            yield label | compiled(launch, options, capability)
        return
    _WORK.extend((launch, options, capability) for _, launch, options in work)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:  # which finds what was noted
        for (label, _, _), row in zip(work, pool.map(_compile_noted, range(len(work))), strict=True):
            yield label | row


_WORK: list[tuple[Launch, dict[str, int], int]] = []


def _compile_noted(index: int) -> dict[str, Any]:
    return compiled(*_WORK[index])


COLUMNS = (
    "operator", "shape", "kernel", "warps", "stages", "registers", "stack", "shared", "blocks", "loads of 16 bytes",
    "loads of 2 bytes", "register operands", "narrow products", "open waits",
)  # fmt: skip


def table(found: list[dict[str, Any]], capability: int) -> str:
    """Markdown: each row a kernel, shape and option."""
    lines = [
        "# Kernels, compiled ahead of time",
        "",
        f"Compute capability {capability / 10}, Triton {triton.__version__}, every kernel as launched, with every",
        "option that is offered (float32, whose products are the library's unless Triton is asked for: the first).",
        "Bytes of stack are what a thread spills; shared memory in KiB; blocks are those that fit a multiprocessor by",
        "registers and shared memory. `register operands`: warp-group products whose first operand is in registers;",
        "`narrow products`: offsets into states that come of a product of 32 bits; `open waits`: shared memory written",
        "after a wait for products before all warps have met. Written by `python -m benchmarks.ahead_of_time`; nothing",
        "here was run on a GPU.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
    ]
    for row in found:
        shown = row | {"shared": f"{row['shared'] / 1024:.0f}"}
        lines.append("| " + " | ".join(str(shown[column]) for column in COLUMNS) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table, or print a part of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--capability", type=int, choices=SHARED_MEMORY, default=90)
    parser.add_argument("--some", action="store_true", help="few shapes and the first option, as JSON lines")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    found = rows(arguments.groups, arguments.capability, arguments.some, 1 if arguments.some else arguments.workers)
    if arguments.some:
        for row in found:
            print(json.dumps(row), flush=True)
        return
    RESULTS.write_text(table(list(found), arguments.capability))


if __name__ == "__main__":
    main()
