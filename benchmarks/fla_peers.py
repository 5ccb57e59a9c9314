"""What `fla` (flash-linear-attention) has of our baselines: Mamba, and RWKV-4's operator.

Its Mamba has no scan of its own. In training it calls `mamba_inner_fn` of `mamba_ssm`, the authors' CUDA kernels, which
take `causal_conv1d`; without them it walks over the tokens in Python. It has no model of RWKV-4.
"""

import importlib.util
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import Tensor, nn

from benchmarks.baselines import load_ours
from kernels.wkv.reference import NOTHING
from xlstm.models.configs import MambaConfig


def mamba(config: MambaConfig, model: nn.Module, device: str) -> tuple[nn.Module, str]:
    """Its Mamba with our weights in float32, and what scans. RuntimeError on a GPU, where that is the loop."""
    from fla.layers.mamba import is_fast_path_available
    from fla.models.mamba import MambaConfig as TheirConfig
    from fla.models.mamba import MambaForCausalLM

    if device == "cuda" and is_fast_path_available and importlib.util.find_spec("causal_conv1d") is not None:
        scan = f"mamba_ssm {version('mamba_ssm')} with causal_conv1d {version('causal_conv1d')}"
    elif device == "cuda":
        raise RuntimeError(
            "fla's Mamba would walk over the tokens in Python: its kernels are those of mamba_ssm and causal_conv1d; "
            "pip install --no-build-isolation causal-conv1d mamba-ssm"
        )
    else:
        scan = "a loop in Python"
    peer = MambaForCausalLM(
        TheirConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.embedding_dim,
            num_hidden_layers=config.num_blocks,
            state_size=config.state_dim,
            dt_rank=config.delta_rank,
            norm_eps=1e-5,
            fuse_cross_entropy=device == "cuda",  # a Triton kernel that asks for a GPU
        )
    )
    load_ours(config, model, peer)
    return peer.train(), scan


def wkv(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, **_: None) -> tuple[Tensor, None]:
    """`kernels.wkv.wkv` of a whole sequence by fla's operator, which takes log(-decay) and the state before."""
    batch, _time, channels = k.shape
    before = k.new_zeros(batch, 3, 1, channels)
    before[:, 2] = NOTHING
    return operator()(torch.log(-decay), bonus, k, v, before)[0], None


def operator() -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Its operator: log(-decay) and bonus (channels,), k and v (batch, time, channels), state (batch, 3, 1, channels).

    The state is a, b and their scale m, as ours. It keeps every token's state for the backward, in the dtype of k.
    """
    from fla.ops.rwkv4 import fused_recurrent_rwkv4

    return fused_recurrent_rwkv4


def interpret_first_options() -> None:
    """Where Triton interprets, its kernels take the first of their launch options: there is nothing to measure."""
    from triton.runtime.autotuner import Autotuner

    Autotuner.prune_configs = lambda self, kwargs: self.configs[:1]
    Autotuner._bench = lambda self, *arguments, config, **others: [0.0]
