"""Names of model families: from `xlstm[7:1]` to what it says, and from a configuration to `xlstm[7:1]`."""

import dataclasses
import difflib
import math
import re
from functools import lru_cache
from typing import NamedTuple

from xlstm.models.config_base import Ends
from xlstm.models.configs import FAMILIES, HybridConfig, LSTMConfig, ModelConfig, XLSTMConfig, hybrid_turns


class Family(NamedTuple):
    """What a family's name says. The ratio is that of mLSTM to sLSTM blocks, for xLSTM alone."""

    base: str
    num_mlstm: int = 0
    num_slstm: int = 0
    variant: str = ""
    """The rung of the LSTM's ladder, where it is not the last; of a hybrid its pattern."""


def parse_family(label: str) -> Family:
    """`xlstm[7:1]` to (xlstm, 7, 1), `llama` to (llama, 0, 0). ValueError listing the valid names."""
    ratio = re.fullmatch(r"xlstm\[(\d+):(\d+)\]", label)
    if ratio and (int(ratio[1]) or int(ratio[2])):
        return Family("xlstm", int(ratio[1]), int(ratio[2]))
    rung = re.fullmatch(r"lstm\[(vanilla|residual)\]", label)
    if rung:
        return Family("lstm", variant=rung[1])
    if "+" in label and "=" not in label:
        hybrid_turns(label)
        return Family("hybrid", variant=label)
    if label in FAMILIES and label not in ("xlstm", "hybrid"):
        return Family(label)
    known = [name for name in FAMILIES if name != "hybrid"]
    meant = [f"; did you mean `{name}`? There" for name in difflib.get_close_matches(label, known, n=1)] or ["; there"]
    others = ", ".join(
        [*(name for name in FAMILIES if name not in ("xlstm", "hybrid")), "lstm[vanilla]", "lstm[residual]"]
    )
    raise ValueError(
        f"unknown model family `{label}`{meant[0]} are xlstm[a:b] for a mLSTM to b sLSTM blocks "
        f"(xlstm[1:0], xlstm[7:1], xlstm[0:1]), {others}; and blocks in turns, such as gated-deltanet[3]+llama[1]"
    )


PAPER_POSITIONS = {24: (3, 20), 48: (3, 5, 7, 40, 42, 44), 64: (3, 5, 7, 40, 42, 44)}
"""sLSTM blocks of xLSTM[7:1] where arXiv 2405.04517 states them (appendix D.3), by depth.

The paper gives the list of six for all its sizes but the smallest, so for the deepest too.
"""


def place_slstm(num_blocks: int, num_mlstm: int, num_slstm: int) -> tuple[int, ...]:
    """Positions of the sLSTM blocks of xLSTM[num_mlstm:num_slstm] at a depth.

    [7:1] at 24, 48 and 64 blocks: the paper's. Otherwise their number is the ratio's share of the depth, rounded, and
    at least one of each kind where the ratio names both; and they are spread evenly: of the first j blocks,
    floor(j * number / num_blocks) are sLSTM blocks. So the last is one, as in xLSTM[1:1] of two blocks. ValueError for
    one block of two kinds.
    """
    if (num_mlstm, num_slstm) == (7, 1) and num_blocks in PAPER_POSITIONS:
        return PAPER_POSITIONS[num_blocks]
    number = _rounded(num_blocks * num_slstm, num_mlstm + num_slstm)
    if num_mlstm and num_slstm:
        if num_blocks < 2:
            raise ValueError(f"xlstm[{num_mlstm}:{num_slstm}] needs two blocks at least, not {num_blocks}")
        number = min(max(number, 1), num_blocks - 1)
    return tuple(
        block for block in range(num_blocks) if (block + 1) * number // num_blocks > block * number // num_blocks
    )


def _rounded(numerator: int, denominator: int) -> int:
    """The quotient to the nearest integer, halves upwards."""
    return (2 * numerator + denominator) // (2 * denominator)


def family_label(config: ModelConfig) -> str:
    """The family as people write it; a pure function of the configuration.

    xLSTM: [1:0] and [0:1] for one kind of block; [7:1] where the positions are those of [7:1] at eight blocks or more;
    else the ratio of the numbers of blocks, where it gives the positions, or else the smallest that does; else, for
    positions chosen by hand, the ratio of the numbers. What an ablation changed follows, as in
    `xlstm[1:0]+convolution=False`: another model, another law.
    """
    if isinstance(config, LSTMConfig) and config.variant != "up-projection":
        return f"lstm[{config.variant}]"
    if isinstance(config, HybridConfig):
        return config.pattern
    if not isinstance(config, XLSTMConfig):
        return config.family
    num_mlstm, num_slstm = _ratio(config.num_blocks, config.slstm_at)
    changed = "".join(
        f"+{field.name}={getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if field.name not in _NO_ABLATION and getattr(config, field.name) != field.default
    )
    return f"xlstm[{num_mlstm}:{num_slstm}]{changed}"


_NO_ABLATION = {*Ends.__dataclass_fields__, "family", "embedding_dim", "num_blocks", "slstm_at", "num_heads"}
"""Fields of xLSTM's configuration that its task, its size and its ratio say."""


@lru_cache
def _ratio(depth: int, positions: tuple[int, ...]) -> tuple[int, int]:
    if len(positions) in (0, depth):
        return (0, 1) if positions else (1, 0)
    if depth >= 8 and positions == place_slstm(depth, 7, 1):
        return 7, 1
    divisor = math.gcd(depth, len(positions))
    exact = ((depth - len(positions)) // divisor, len(positions) // divisor)
    if positions == place_slstm(depth, *exact):
        return exact
    for total in range(2, depth + 1):
        for num_slstm in range(1, total):
            if positions == place_slstm(depth, total - num_slstm, num_slstm):
                return total - num_slstm, num_slstm
    return exact


def dimensions_key(config: ModelConfig) -> str:
    """Which table of published dimensions a configuration belongs to."""
    return config.family if isinstance(config, XLSTMConfig) else family_label(config)
