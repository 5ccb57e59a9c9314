"""The closed form of a step's memory is what torch's own tracker sees of the step, on ranks that are not there."""

import pytest

from benchmarks.memory import run_spec, tracked_peak
from kernels.linear_cross_entropy import chunks
from kernels.mlstm.torch_chunkwise import default_chunk_size
from kernels.mlstm.triton_chunkwise import default_chunk_size as triton_chunks
from xlstm.accounting.families import saved
from xlstm.models.sizes import config_for
from xlstm.training import memory as memory_module
from xlstm.training.memory import memory
from xlstm.training.micro_batch import Probe


# Not the LSTM: torch's fused layer keeps its buffers where the tracker does not look; test_saved.py holds its terms.
@pytest.mark.parametrize(
    ("family", "size", "ranks", "micro", "checkpointing", "precision", "passes"),
    [
        ("llama", "125M", 8, 2, "none", "bf16-mixed", 1),
        ("llama", "125M", 1, 4, "none", "float32", 1),
        pytest.param("llama", "2.7B", 32, 1, "full", "bf16-mixed", 1, marks=pytest.mark.slow),
        ("gpt", "125M", 8, 2, "full", "bf16-mixed", 1),
        ("xlstm[1:0]", "125M", 8, 1, "none", "bf16-mixed", 1),
        pytest.param("xlstm[1:0]", "760M", 16, 1, "full", "bf16-mixed", 1, marks=pytest.mark.slow),
        pytest.param("xlstm[7:1]", "125M", 8, 1, "selective", "bf16-mixed", 1, marks=pytest.mark.slow),
        ("xlstm-large", "125M", 8, 1, "none", "bf16-mixed", 1),
        pytest.param("mamba", "125M", 8, 1, "none", "bf16-mixed", 1, marks=pytest.mark.slow),
        pytest.param("rwkv4", "125M", 8, 1, "none", "bf16-mixed", 1, marks=pytest.mark.slow),
        ("llama", "125M", 8, 1, "none", "bf16-mixed", 2),
        ("llama", "125M", 1, 2, "full", "bf16-mixed", 1),
        ("llama", "125M", 1, 1, "none", "bf16-mixed", 2),
    ],
)
def test_the_peak_is_what_fsdps_tracker_sees_within_fifteen_percent(
    family: str, size: str, ranks: int, micro: int, checkpointing: str, precision: str, passes: int
) -> None:
    spec = run_spec(family, size, ranks, micro, checkpointing, precision, passes)
    assert memory(spec).total == pytest.approx(tracked_peak(spec)["Total"], rel=0.15)


@pytest.mark.slow
def test_the_micro_batch_by_probe_is_the_largest_that_the_tracker_sees_fit() -> None:
    peaks = {n: tracked_peak(run_spec("llama", "125M", 8, n, "none", "bf16-mixed")) for n in (1, 2, 4, 8, 16)}
    total = {n: peak["Total"] for n, peak in peaks.items()}
    held = peaks[1]["Sharded Param"] + peaks[1]["Moments"]
    for size in (1, 2, 4, 8):  # room for this many and not for twice as many
        available = (total[size] + total[2 * size]) // 2
        probe = Probe.measure(total.__getitem__, held, available, 16)
        assert probe.choose(16) == size
        assert probe.choose(16, before=4) == (4 if size >= 4 else size)


def test_a_gpu_holds_the_logits_and_states_that_its_kernels_do() -> None:
    assert memory_module.GPU_LOGITS_BYTES == chunks.GPU_CHUNK_BYTES
    assert memory_module.GPU_LOGITS_ROWS == chunks.GPU_ROWS
    tokens, vocab, d = 4 * 2048, 50304, 2048
    by_chunks = 2 * chunks.rows_at_once(vocab, 2, on_gpu=True) * vocab + 2 * 4 * vocab * d
    assert memory_module._loss(tokens, vocab, vocab * d, 2, on_gpu=True) == by_chunks
    assert memory_module._loss(2048, vocab, vocab * d, 2, on_gpu=True) == 2 * 2 * 2048 * vocab
    # A block of four heads of 1024, whose states are in float32 after 128 tokens, or in bfloat16 after 256.
    assert {default_chunk_size(tokens, 1024, 1024), triton_chunks(tokens, 1024, 1024)} == {128, 256}
    block = saved(config_for("xlstm[1:0]", "1.3B", vocab))[0]
    states = 4 * 1024**2 * (4 / 128 - 2 / 256)
    assert block.bytes_per_token(2) - block.bytes_per_token(2, on_gpu=True) == pytest.approx(states)
    assert block.bytes_per_token(4) == block.bytes_per_token(4, on_gpu=True)
