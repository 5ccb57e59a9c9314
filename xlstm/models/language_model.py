"""What the language models of all families share: tokens in, blocks over a residual stream, logits or losses out."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from xlstm.models.configs import ModelConfig
from xlstm.models.dropout import Dropout
from xlstm.models.head import logits_or_losses, squared_errors


class LanguageModel(nn.Module):
    """Language model over `config.vocab_size` tokens. `blocks` are the units of sharding and checkpointing.

    Whatever the family, `config.num_inputs` real numbers per position may go in instead of tokens, and
    `config.num_outputs` classes or numbers come out instead of the vocabulary; see `xlstm.models.configs.Ends`.

    A family gives its blocks and its last norm, and overrides what is its own: `embed`, `apply_blocks`, `decays`, and
    always `initialize_parameter`. Parameters are registered in the order in which a token meets them, `stem` (modules
    by name) between the embedding and the blocks: sums over all parameters are rounded in that order.
    """

    soft_cap: float | None = None
    """Bound c of the logits, c tanh(logit / c); None for none."""
    elementwise: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of what has several dimensions and yet is no map: it multiplies or shifts single channels."""
    inputs_first: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of maps whose inputs are the last dimension but one."""
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of what has several dimensions and is spared by weight decay."""
    drawn_by_width: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of vectors that start the smaller the wider the model is; mup keeps their size."""
    queries: ClassVar[tuple[str, ...]] = ()
    """Ends of the names of maps to queries, where the width of heads is the configuration's over their number."""

    def __init__(
        self,
        config: ModelConfig,
        blocks: Iterable[nn.Module],
        norm: nn.Module,
        *,
        stem: Mapping[str, nn.Module] | None = None,
        tied: bool = False,
    ) -> None:
        """`tied` uses the embedding as the head, where both are the vocabulary's."""
        super().__init__()
        self.config: Any = config
        d = config.embedding_dim
        self.embedding: nn.Embedding | nn.Linear = (
            nn.Linear(config.num_inputs, d, bias=False) if config.num_inputs else nn.Embedding(config.vocab_size, d)
        )
        for name, module in (stem or {}).items():
            self.add_module(name, module)
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.tied = tied and not (config.num_inputs or config.num_outputs)
        if not self.tied:
            self.head = nn.Linear(d, config.num_outputs or config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        state: Any = None,
        *,
        resets: Tensor | None = None,
        targets: Tensor | None = None,
        z_loss: float = 0.0,
        dropout: Dropout | None = None,
        last: bool = False,
    ) -> tuple[Tensor, Any]:
        """Logits (batch, time, vocab), or each token's loss in nats (batch, time) where `targets` are given; and state.

        `last` gives the logits of the last position alone, (batch, 1, vocab): what generation needs of a prompt.
        `tokens` (batch, time) are int64, or floats (batch, time, num_inputs); of a regression the numbers themselves
        come out, and as losses their squared errors.
        `resets` (batch, time) is true where a document starts. `z_loss`: see `logits_or_losses`. In training (gradients
        on, targets given, no state) no state is returned but None: it would hold every block's activations alive.
        """
        keep_state = state is not None or targets is None or not torch.is_grad_enabled()
        if self.config.num_inputs:
            tokens = tokens.to(self.embedding.weight.dtype)
        x, after = self.apply_blocks(self.embed(tokens), state, resets, keep_state, dropout)
        if last:
            x = x[:, -1:]
        weight = self.embedding.weight if self.tied else self.head.weight
        if self.config.regression:
            return squared_errors(self.norm(x), weight, targets), after
        return logits_or_losses(self.norm(x), weight, targets, self.soft_cap, z_loss), after

    def embed(self, tokens: Tensor) -> Tensor:
        """What the first block reads, (batch, time, d), of `tokens` (batch, time)."""
        return self.embedding(tokens)

    def apply_blocks(
        self, x: Tensor, state: Any, resets: Tensor | None, keep_state: bool, dropout: Dropout | None
    ) -> tuple[Tensor, Any]:
        """`x` (batch, time, d) after the last block, and the state: one entry per block here, None unless kept."""
        return self.run_alike(x, state, keep_state, dropout, resets)

    def run_alike(
        self, x: Tensor, state: Any, keep_state: bool, dropout: Dropout | None, *others: Any
    ) -> tuple[Tensor, Any]:
        """As `apply_blocks`, of blocks that are all called with the same `others` behind `x` and their state."""
        each = ((state[index] if state else None, *others) for index in range(len(self.blocks)))
        x, states = self.run_blocks(x, each, keep_state, dropout)
        return x, tuple(states) if keep_state else None

    def run_blocks(
        self, x: Tensor, others: Iterable[tuple[Any, ...]], keep_state: bool, dropout: Dropout | None
    ) -> tuple[Tensor, list[Any]]:
        """`x` (batch, time, d) after the last block, and what each remembers, nothing unless it is to be kept.

        `others` are what each block is called with after `x`, and then with what the one before it gave besides.
        """
        states: list[Any] = []
        passed: list[Any] = []
        for index, (block, arguments) in enumerate(zip(self.blocks, others, strict=True)):
            before = x
            x, after, *passed = block(x, *arguments, *passed)
            if dropout is not None:
                x = dropout(before, x, index)
            if keep_state:
                states.append(after)
        return x, states

    def decays(self, name: str, parameter: nn.Parameter) -> bool:
        """Weight decay falls on the matrices, the token embedding excepted (arXiv 2405.04517, appendix D.2)."""
        return parameter.ndim >= 2 and name != "embedding.weight" and not name.endswith(self.undecayed)

    def is_matrix(self, name: str, parameter: nn.Parameter) -> bool:
        """Whether a parameter is the one whole matrix of a map within the hidden layers: what Muon moves."""
        outside = name in ("embedding.weight", "head.weight")
        return parameter.ndim == 2 and not outside and not name.endswith(("conv.weight", "bias", *self.elementwise))

    def fans(self, name: str, shape: torch.Size) -> tuple[int, int] | None:
        """Inputs and outputs of the map that a parameter is, each of its blocks where it has several; else None."""
        looked_up = name == "embedding.weight" and not self.config.num_inputs
        if len(shape) < 2 or looked_up or name.endswith(("conv.weight", "bias", *self.elementwise)):
            return None
        outputs, inputs = shape[-2:]
        return (outputs, inputs) if name.endswith(self.inputs_first) else (inputs, outputs)

    def asks(self, name: str) -> bool:
        """Whether a parameter makes queries whose products with keys are as many as a head is wide, and scaled so."""
        return name.endswith(self.queries)

    def recurs(self, name: str) -> bool:
        """Whether a parameter is one of the recurrent weights that may have a weight decay of their own."""
        return False

    def initialize_parameter(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """Fill one parameter, in place, with the initial values of the family's authors."""
        raise NotImplementedError
