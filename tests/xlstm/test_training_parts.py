"""Parts of the trainer that need no process of their own."""

import math

import pytest
import torch
from every_family import small
from examples import examples
from hypothesis import given
from hypothesis import strategies as st

from kernels import dispatch
from kernels.linear_cross_entropy import chunks
from xlstm.models import build, head
from xlstm.models.configs import LlamaConfig
from xlstm.run.spec import Data, Execution, Optimizer, Physics, RunSpec, Schedule, shared_steps
from xlstm.training.micro_batch import micro_batch
from xlstm.training.optimization.optimizer import build_optimizer, clip_gradients
from xlstm.training.optimization.schedule import learning_rate

MODEL = LlamaConfig(vocab_size=256, embedding_dim=32, num_blocks=1, num_heads=2)


def physics(steps: int = 100, schedule: Schedule | None = None, **changes: object) -> Physics:
    values = {
        "model": MODEL,
        "data": Data(corpus="text", revision="sha256:0", context_length=8),
        "tokens": steps * 64,
        "batch_tokens": 64,
        "optimizer": Optimizer(learning_rate=0.5),
        "schedule": schedule or Schedule(),
    }
    return Physics(**(values | changes))  # type: ignore[arg-type]


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    run = physics(schedule=Schedule(kind="constant", warmup_steps=10))
    rates = [learning_rate(run, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * k for k in range(1, 11)])
    assert set(rates[10:]) == {0.5}


def test_cosine_is_torchs_from_peak_to_floor() -> None:
    run = physics(schedule=Schedule(kind="cosine", warmup_steps=0, final_ratio=0.1))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=0.05)
    for step in range(100):
        scheduler.step()
        assert learning_rate(run, step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_cosine_that_decays_longer_than_the_run_is_cut_off() -> None:
    whole = physics(200, Schedule(kind="cosine", warmup_steps=5))
    cut = physics(100, Schedule(kind="cosine", warmup_steps=5, decay_steps=200))
    assert [learning_rate(cut, s) for s in range(100)] == [learning_rate(whole, s) for s in range(100)]
    assert shared_steps(cut, physics(150, Schedule(kind="cosine", warmup_steps=5, decay_steps=200))) == 100


def test_wsd_is_flat_and_falls_in_a_line_to_its_floor() -> None:
    run = physics(schedule=Schedule(kind="wsd", warmup_steps=10, decay_steps=20, final_ratio=0.0))
    rates = [learning_rate(run, step) for step in range(100)]
    assert set(rates[9:80]) == {0.5}
    assert rates[80:] == pytest.approx([0.5 * (1 - k / 20) for k in range(1, 21)], abs=1e-12)


@examples()
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(["wsd", "constant", "cosine"]),
)
def test_runs_that_share_steps_have_equal_rates_in_them(a: int, b: int, decay_a: int, decay_b: int, kind: str) -> None:
    left, right = (
        physics(steps + 30, Schedule(kind=kind, warmup_steps=5, decay_steps=decay if kind == "wsd" else None))  # type: ignore[arg-type]
        for steps, decay in ((a, decay_a), (b, decay_b))
    )
    shared = shared_steps(left, right)
    assert shared == shared_steps(right, left)
    assert [learning_rate(left, s) for s in range(shared)] == [learning_rate(right, s) for s in range(shared)]
    if kind == "wsd" and left != right and shared < min(left.steps, right.steps):
        assert learning_rate(left, shared) != learning_rate(right, shared) or decay_a == decay_b


def test_runs_that_differ_in_anything_else_share_nothing() -> None:
    wsd = Schedule(kind="wsd", decay_steps=10)
    one = physics(100, wsd)
    assert shared_steps(one, physics(50, wsd)) == 40
    assert shared_steps(one, physics(50, wsd, seed=1)) == 0
    assert shared_steps(one, physics(50, wsd, optimizer=Optimizer(learning_rate=0.4))) == 0
    assert shared_steps(one, physics(50, Schedule(kind="wsd", warmup_steps=1, decay_steps=10))) == 0


@pytest.mark.parametrize(
    "schedule", [Schedule(warmup_steps=101), Schedule(kind="wsd", warmup_steps=91, decay_steps=10)]
)
def test_a_run_shorter_than_its_schedule_is_refused(schedule: Schedule) -> None:
    with pytest.raises(ValueError, match="a run of 100 steps is shorter than its warm-up"):
        physics(100, schedule)


@pytest.mark.parametrize("limit", [None, 1e-3, 1.0, 1e3])
def test_gradients_are_clipped_as_torch_clips_them_bit_for_bit(limit: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((7, 5), (3,), (40, 40))]
    for parameter in ours:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    theirs = [torch.nn.Parameter(torch.zeros_like(parameter)) for parameter in ours]
    for parameter, twin in zip(ours, theirs, strict=True):
        twin.grad = parameter.grad.clone()  # type: ignore[union-attr]
    norm = torch.nn.utils.clip_grad_norm_(theirs, math.inf if limit is None else limit)
    assert torch.equal(clip_gradients(ours, limit), norm)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("chunk", [2**24, 256 * 5])
def test_z_loss_changes_the_gradient_and_not_the_loss(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_LOGITS", chunk)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(256, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(256, (2, 7), generator=generator)
    targets[0, 3] = -100
    plain = head.logits_or_losses(hidden, weight, targets)
    losses = head.logits_or_losses(hidden, weight, targets, z_loss=0.5)
    assert torch.equal(losses, plain)
    ours = torch.autograd.grad(losses.sum(), [hidden, weight])
    # Written out: each counted token pays -log p + 0.5 log²(Z).
    logits = hidden @ weight.T
    log_z = logits.exp().sum(-1).log()
    chosen = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    paid = torch.where(targets == -100, 0.0, log_z - chosen + 0.5 * log_z**2).sum()
    for mine, theirs in zip(ours, torch.autograd.grad(paid, [hidden, weight]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_the_micro_batch_is_the_largest_that_fits_and_divides() -> None:
    spec = RunSpec(physics=physics(batch_tokens=96 * 8, tokens=9600 * 8), execution=Execution(device="cuda"))
    assert micro_batch(spec, None) == 96
    sizes = [micro_batch(spec, gib * 2**20) for gib in (1, 2, 4, 8, 1000)]
    assert sizes == sorted(sizes)
    assert all(96 % size == 0 for size in sizes)
    assert sizes[-1] == 96
    assert sizes[0] < 96
    with pytest.raises(ValueError, match="one sequence needs about"):
        micro_batch(spec, 1000)
    stated = spec.model_copy(update={"execution": Execution(micro_batch_sequences=3)})
    assert micro_batch(stated, 1000) == 3


def test_the_kernels_a_launch_names_are_those_that_run() -> None:
    tensor = torch.zeros(1)
    try:
        dispatch.prefer("reference")
        assert dispatch.choose("mlstm", "auto", tensor) == "reference"
        assert dispatch.choose("mlstm", "torch", tensor) == "torch"
        dispatch.prefer("numba")
        assert dispatch.choose("mlstm", "auto", tensor, cpu_obstacle=lambda: None) == "numba"
        assert dispatch.choose("linear_cross_entropy", "auto", tensor) == "torch"
    finally:
        dispatch.prefer("auto")
    assert dispatch.choose("mlstm", "auto", tensor) == "torch"


@pytest.mark.parametrize(("recurrent", "decay"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_recurrent_weights_of_the_slstm_have_the_weight_decay_that_is_said(
    recurrent: float | None, decay: float
) -> None:
    model = build(small("xlstm[1:1]", vocab_size=16, embedding_dim=16))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    built = build_optimizer(model, Optimizer(learning_rate=1e-3, recurrent_weight_decay=recurrent))
    decays = {names[id(one)]: group["weight_decay"] for group in built.param_groups for one in group["params"]}
    assert decays.pop("blocks.1.recurrent") == decay
    assert {name for name, value in decays.items() if value} == {
        name for name, parameter in model.named_parameters() if model.decays(name, parameter)
    } - {"blocks.1.recurrent"}
    assert set(decays.values()) == {0.0, 0.1}
