"""What kernels for CPUs need of this machine: Numba, and the OpenMP library that torch has loaded.

Looked for when this is first imported, which `kernels` does not do by itself: Numba takes half a second.
"""

import ctypes
import importlib
from pathlib import Path

import torch

SYMBOLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
"""What is called of OpenMP."""


def _library(folder: Path) -> ctypes.CDLL | None:
    """torch's library, through which the symbols of the libraries that it loaded are found."""
    file = next(folder.glob("libtorch_cpu.*"), None)
    return None if file is None else ctypes.CDLL(str(file))


def _missing(library: ctypes.CDLL | None) -> str | None:
    if library is None:
        return "torch's library libtorch_cpu does not lie where torch is installed"
    if not all(hasattr(library, name) for name in SYMBOLS):
        return "this build of torch has no OpenMP whose threads could be shared"
    try:
        importlib.import_module("numba")
    except (ImportError, OSError) as error:  # it is not there, or its parts do not fit each other
        return f"numba cannot be imported: {error}"
    return None


OPENMP = _library(Path(torch.__file__).parent / "lib")
MISSING = _missing(OPENMP)
"""What of this machine's software keeps the kernels from running at all."""
