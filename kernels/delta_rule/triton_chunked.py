"""The generalised delta rule on GPUs: its pairs by the Triton kernels of linear attention, the rest by the library."""

import functools

from kernels.delta_rule import torch_chunked
from kernels.gated_linear_attention.triton_chunked import KERNELS

forward = functools.partial(torch_chunked.forward, by=KERNELS)
backward = functools.partial(torch_chunked.backward, by=KERNELS)
