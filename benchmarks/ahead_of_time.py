"""What the compiler says of every Triton kernel, for a GPU that need not be present: as launched, and for every option.

    python -m benchmarks.ahead_of_time                        all at the published shapes: results/ahead_of_time.md
    python -m benchmarks.ahead_of_time --some --capability 80 a part of it, one JSON object a line

The operators are called with tensors on the CPU, and what they launch is noted instead of run: Triton then says itself
which arguments are constants or multiples of 16. Registers, stack (where registers are spilled to) and shared memory
are read from the machine code, loads and matrix products from what it is compiled from.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import KernelInterface, create_function_from_signature

from benchmarks.triton_calls import GROUPS
from kernels import dispatch

RESULTS = Path(__file__).with_name("results") / "ahead_of_time.md"
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
