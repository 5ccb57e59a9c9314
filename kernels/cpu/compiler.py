"""How kernels for CPUs are compiled, and where they are kept.

Imported only where Numba is installed, when a kernel is first called.
"""

import ctypes
import functools
import hashlib
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
from numba import cfunc, config, types
from numba.core.caching import UserWideCacheLocator
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numba.misc.appdirs import AppDirs

from kernels.cpu.functions import FAST, inlined, share
from kernels.cpu.runtime import OPENMP, SYMBOLS
from kernels.cpu.table import AXES, DTYPES, Layout, Rows

# Rows that a loop reads and writes may overlap for all the compiler knows: it may check that they do not, for as many
# pairs as a loop of ours has, and for each row anew: tensors whose rows lie in turn would seem to overlap as wholes.
llvmlite.binding.set_option("kernels", "--runtime-memory-check-threshold=128")
llvmlite.binding.set_option("kernels", "--hoist-runtime-checks=0")


for _name in SYMBOLS:  # what kernels call, made known to the compiler
    llvmlite.binding.add_symbol(_name, ctypes.cast(getattr(OPENMP, _name), ctypes.c_void_p).value)


@functools.cache
def _stamp() -> str:
    """What a kernel is compiled from and for: all files of this package, and the kind of processor.

    Kernels take functions and numbers from other files than their own, and machines of several kinds may share a home.
    """
    package = Path(__file__).parent.parent
    digest = hashlib.sha256(repr(cpu_target.target_context.codegen().magic_tuple()).encode())
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)} {file.stat().st_size}\n".encode() + file.read_bytes())
    return digest.hexdigest()


class ByContent(UserWideCacheLocator):  # type: ignore[misc]
    """A kernel is found again by the contents of its sources, wherever they lie, and by the kind of processor."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._lineno = py_func.__code__.co_firstlineno
        folder = config.CACHE_DIR or AppDirs(appname="numba", appauthor=False).user_cache_dir
        self._cache_path = str(Path(folder) / f"{Path(py_file).parent.name}-{_stamp()[:16]}")
        self._own_file = hashlib.sha256(Path(py_file).read_bytes()).hexdigest()

    def get_source_stamp(self) -> str:
        return _stamp() + self._own_file


class Alone(JITCodeLibrary):  # type: ignore[misc]
    """A kernel that calls its own copies of the functions within it, however it was come by.

    Numba's copies are weak: in the process that compiles the first kernel to call a function, they give way to the
    function as it was compiled by itself, which need not round as they do; a kernel from the cache would call them.
    """

    def _optimize_final_module(self) -> None:
        super()._optimize_final_module()
        functions = list(self._final_module.functions)
        if any(function.name.startswith("cfunc.") for function in functions):
            for function in functions:
                if function.linkage is llvmlite.binding.Linkage.linkonce_odr and not function.is_declaration:
                    function.linkage = llvmlite.binding.Linkage.internal


def prepare() -> None:
    """Have Numba learn all types and functions it knows, which its first kernel does otherwise."""
    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


_compiling = threading.Lock()


def compiled(body: Callable[..., None]) -> int:
    """The address of a kernel, from the cache where it can be, and kept there where the folder can be written."""
    with _compiling:  # Numba is told of `ByContent` for the whole process
        before, config.CACHE_LOCATOR_CLASSES = config.CACHE_LOCATOR_CLASSES, f"{__name__}.{ByContent.__name__}"
        generator = cpu_target.target_context.codegen()
        library, generator._library_class = generator._library_class, Alone
        try:
            keep = ByContent.from_function(body, inspect.getfile(body)) is not None
            try:
                return _address(body, keep)
            except OSError:  # the folder is there, but full
                return _address(body, keep=False)
        finally:
            config.CACHE_LOCATOR_CLASSES, generator._library_class = before, library


def _address(body: Callable[..., None], keep: bool) -> int:
    # A function of the table alone, the body's code within it, which Numba's cache takes for the body.
    names: dict[str, Any] = {"share": share, "body": inlined(body), "__name__": body.__module__}
    read, at = [], 1
    for kind in Layout(body).kinds.values():
        names[f"read_{at}"] = _reader(kind)
        read.append(f"read_{at}(table, {at})")
        at += 1 + AXES if kind in DTYPES else 1
    source = f"def {body.__name__}(table):\n first, last = share(table)\n body(first, last, {', '.join(read)})"
    exec(compile(source, inspect.getfile(body), "exec"), names)
    function = names[body.__name__]
    function.__code__ = function.__code__.replace(co_firstlineno=body.__code__.co_firstlineno)
    signature = types.void(types.CPointer(types.int64))
    return int(cfunc(signature, cache=keep, error_model="numpy", fastmath=FAST)(function).address)


@functools.cache
def _reader(kind: Any) -> Any:
    """A function that reads an argument of this kind from its place in the table."""
    views = {view: types.NamedUniTuple(types.int64, 1 + AXES, view) for view in DTYPES}
    numbers = {int: types.int64, bool: types.boolean, float: types.float32, list[Rows]: types.CPointer(types.int64)}
    seen = (views | numbers)[kind]

    @intrinsic
    def read(typing: Any, table: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            table, at = arguments
            words = []
            for n in range(1 + AXES if kind in views else 1):
                place = builder.add(at, context.get_constant(types.int64, n))
                words.append(builder.load(builder.gep(table, [place])))
            if kind in views:
                return context.make_tuple(builder, seen, words)
            if kind is float:
                number = builder.bitcast(words[0], context.get_value_type(types.float64))
                return builder.fptrunc(number, context.get_value_type(seen))
            if kind == list[Rows]:
                return builder.inttoptr(words[0], context.get_value_type(seen))
            return context.cast(builder, words[0], types.int64, seen)

        return seen(types.CPointer(types.int64), types.int64), generate

    return read
