"""H3 (Fu et al. 2022, arXiv 2212.14052): y = diagonal(shift(k) v) q, of two state space models; here without attention.

Per block, with N states: 12 d² + (5 N + 16) d parameters. Both models are long convolutions in training, with the
filters

    shift     h_l = sum_n C_{n + l} B_n, l < N          diagonal     h_l = 2 Re sum_n C_n b_n a_n^l

where a = (1 + A Δ/2) / (1 - A Δ/2) and b = B Δ / (1 - A Δ/2). What they remember is finite: N - 1 keys, and the N/2
complex states of the element-wise recurrence s_t = a s_{t-1} + b z_t, whose readings 2 Re C s_t are the diagonal one's.
"""

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.long_convolution import long_convolution
from xlstm.models.gelu_block import GELUBlocks
from xlstm.models.history import joined, latest
from xlstm.models.long_convolution_configs import H3Config
from xlstm.models.mamba import DELTA_RANGE
from xlstm.models.swiglu_block import at_least_float32

PIECE = 64
"""Steps whose powers are formed at once, where states are read or carried on."""


class MixerState(NamedTuple):
    """What a mixer remembers."""

    keys: Tensor  # (batch, N - 1, d): the last inputs of the shift
    states: Tensor  # (batch, d, N / 2, 2): those of the diagonal model, real and imaginary parts


class H3(GELUBlocks):
    """Blocks of H3's mixer and GELU."""

    elementwise: ClassVar[tuple[str, ...]] = (".into", ".read", ".log_rates", ".angles")
    undecayed: ClassVar[tuple[str, ...]] = (".log_rates", ".angles", ".into")
    """A and B of the state space models."""

    def __init__(self, config: H3Config) -> None:
        super().__init__(config, Mixer)

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """The authors': A = -1/2 + i π n, B one, C normal, Δ log-uniform; the shift at first reads C alone."""
        module, leaf = name.split(".")[-2:]
        if leaf == "skip":
            parameter.normal_(generator=generator)
        elif leaf == "log_rates":
            parameter.fill_(math.log(0.5))
        elif leaf == "angles":
            parameter.copy_(math.pi * torch.arange(parameter.shape[1]))
        elif leaf == "log_steps":
            parameter.uniform_(*(math.log(bound) for bound in DELTA_RANGE), generator=generator)
        elif leaf == "into":
            parameter.zero_()[..., 0] = 1.0  # the shift's first place; of a complex number the real part
        elif leaf == "read" and module == "shift":
            bound = parameter.shape[1] ** -0.5
            parameter.uniform_(-bound, bound, generator=generator)
        elif leaf == "read":
            parameter.normal_(std=0.5**0.5, generator=generator)  # of a complex number of variance 1
        else:
            super().initialize_parameter(name, parameter, generator)


class Mixer(nn.Module):
    """The two models between products with values and queries."""

    def __init__(self, config: H3Config) -> None:
        super().__init__()
        d = config.embedding_dim
        self.query_key_value = nn.Linear(d, 3 * d)
        self.shift = Shift(config)
        self.diagonal = Diagonal(config)
        self.out = nn.Linear(d, d)

    def forward(
        self, x: Tensor, state: MixerState | None, resets: Tensor | None, keep: bool
    ) -> tuple[Tensor, MixerState | None]:
        """`x` (batch, time, d) to the same shape, and what is remembered, where it is to be kept."""
        time = x.shape[1]
        query, key, value = self.query_key_value(x).chunk(3, dim=-1)
        keys, key_resets = joined(state.keys if state else None, key, resets)
        shifted = long_convolution(
            keys, checkpoint(self.shift, use_reentrant=False, preserve_rng_state=False), resets=key_resets
        )[:, -time:]
        z = shifted * value
        y = long_convolution(
            z, checkpoint(self.diagonal, time, use_reentrant=False, preserve_rng_state=False), resets=resets
        )
        if state is not None:
            y = y + self.diagonal.recalled(state.states, time, resets).to(y.dtype)
        after = None
        if keep:
            kept = latest(keys, key_resets, self.shift.remembered)
            after = MixerState(
                F.pad(kept, (0, 0, self.shift.remembered - kept.shape[1], 0)),
                self.diagonal.carried(z, state.states if state else None, resets),
            )
        return self.out(y * query), after


class Shift(nn.Module):
    """The filter of a model whose state is the last inputs."""

    keeps_float32: ClassVar[bool] = True

    def __init__(self, config: H3Config) -> None:
        super().__init__()
        self.remembered = config.state_dim - 1
        self.into = nn.Parameter(torch.empty(config.embedding_dim, config.state_dim))
        self.read = nn.Parameter(torch.empty(config.embedding_dim, config.state_dim))
        self.skip = nn.Parameter(torch.empty(config.embedding_dim))

    def forward(self) -> Tensor:
        """(state_dim, d), with what passes unshifted in the first tap; float32 at least."""
        length = 2 * self.into.shape[1]
        into, read = (torch.fft.rfft(at_least_float32(one), length) for one in (self.into, self.read))
        taps = torch.fft.irfft(into.conj() * read, length)[:, : length // 2].mT
        return torch.cat((taps[:1] + at_least_float32(self.skip), taps[1:]))


class Diagonal(nn.Module):
    """The filter of a model of complex states that decay and turn each by itself, and these states."""

    keeps_float32: ClassVar[bool] = True

    def __init__(self, config: H3Config) -> None:
        super().__init__()
        d, states = config.embedding_dim, config.state_dim // 2
        self.log_rates = nn.Parameter(torch.empty(d, states))  # A = -exp(log_rates) + i angles
        self.angles = nn.Parameter(torch.empty(d, states))
        self.log_steps = nn.Parameter(torch.empty(d))
        self.into = nn.Parameter(torch.empty(d, states, 2))
        self.read = nn.Parameter(torch.empty(d, states, 2))
        self.skip = nn.Parameter(torch.empty(d))

    def _modes(self) -> tuple[Tensor, Tensor, Tensor]:
        """log a, b and C, each (d, states), complex of float64: what is rounded here, powers compound."""
        step = self.log_steps.double().exp()[:, None]
        half = torch.complex(-self.log_rates.double().exp(), self.angles.double()) * step / 2
        into, read = (torch.view_as_complex(one.double()) for one in (self.into, self.read))
        return torch.log((1 + half) / (1 - half)), into * step / (1 - half), read

    def forward(self, count: int) -> Tensor:
        """The first `count` taps (count, d), with what passes at once in the first; float32 at least.

        a^(p i + j) is a^(p i) a^j: a product of two small matrices for each channel, p about the root of `count`.
        """
        log_a, b, read = self._modes()
        piece = 1 << math.isqrt(count - 1).bit_length()
        steps = torch.arange(piece, device=log_a.device)[:, None, None]
        begins = torch.arange(0, count, piece, device=log_a.device)[:, None, None]
        first, second = 2 * read * b * torch.exp(log_a * begins), torch.exp(log_a * steps)
        dtype = at_least_float32(self.read).dtype
        left = torch.cat((first.real, -first.imag), dim=-1).to(dtype).transpose(0, 1)  # (d, pieces, 2 states)
        right = torch.cat((second.real, second.imag), dim=-1).to(dtype).permute(1, 2, 0)
        with torch.autocast(left.device.type, enabled=False):
            taps = torch.bmm(left, right).flatten(1)[:, :count].mT
        return torch.cat((taps[:1] + at_least_float32(self.skip), taps[1:]))

    def recalled(self, state: Tensor, time: int, resets: Tensor | None) -> Tensor:
        """What tokens of the first document read of `state` (batch, d, states, 2): (batch, time, d)."""
        log_a, _, read = self._modes()
        held = torch.view_as_complex(state).to(log_a.dtype)
        pieces = []
        for begin in range(0, time, PIECE):
            steps = torch.arange(begin + 1, min(begin + PIECE, time) + 1, device=log_a.device)[:, None, None]
            pieces.append(2 * torch.einsum("bdn,ldn->bld", held, read * torch.exp(log_a * steps)).real)
        found = torch.cat(pieces, dim=1)
        return found if resets is None else found.masked_fill(resets.cumsum(1)[..., None] > 0, 0.0)

    def carried(self, z: Tensor, state: Tensor | None, resets: Tensor | None) -> Tensor:
        """The states after all tokens, (batch, d, states, 2), of inputs `z` (batch, time, d) after `state`."""
        log_a, b, _ = self._modes()
        wide = latest(z, resets, z.shape[1]).double()
        held = b.new_zeros(z.shape[0], *b.shape) if state is None else torch.view_as_complex(state).to(b.dtype)
        if resets is not None:
            held = held.masked_fill(resets.any(1)[:, None, None], 0.0)
        for piece in wide.split(PIECE, dim=1):
            steps = torch.arange(piece.shape[1] - 1, -1, -1, device=b.device)[:, None, None]
            written = torch.einsum("bld,ldn->bdn", piece.to(b.dtype), torch.exp(log_a * steps))
            held = torch.exp(log_a * piece.shape[1]) * held + b * written
        return torch.view_as_real(held).to(at_least_float32(z).dtype)
