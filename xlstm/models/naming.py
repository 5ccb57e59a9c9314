"""Names of models, as pure functions of their configuration: `xlstm[7:1]`, `125M`."""

from xlstm.models.configs import ModelConfig, XLSTMConfig


def place_slstm(num_blocks: int, mlstm: int, slstm: int) -> tuple[int, ...]:
    """Positions of the sLSTM blocks of xLSTM[mlstm:slstm]: the last `slstm` of each group of `mlstm + slstm` blocks."""
    period = mlstm + slstm
    return tuple(block for block in range(num_blocks) if block % period >= mlstm)


def family_label(config: ModelConfig) -> str:
    """The family as people write it."""
    if not isinstance(config, XLSTMConfig):
        return config.family
    total, slstm = config.num_blocks, len(config.slstm_at)
    if slstm in (0, total):
        return "xlstm[1:0]" if slstm == 0 else "xlstm[0:1]"
    return f"xlstm[{total - slstm}:{slstm}]"


def size_label(config: ModelConfig) -> str:
    """The size as people write it."""
    return f"{config.num_blocks}x{config.embedding_dim}"
