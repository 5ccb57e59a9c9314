"""What one optimizer step does on a rank: how often the host waits for numbers, and that nothing moves on none."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_validation import prepared
from torch import Tensor

from xlstm.data import open_prepared
from xlstm.distributed import World
from xlstm.models.configs import LlamaConfig, ModelConfig, XLSTMConfig
from xlstm.run.records import State
from xlstm.run.spec import RunSpec
from xlstm.training.optimization.optimizer import update
from xlstm.training.trainer import DivergedError, Trainer

WAITS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__")
"""Methods of a tensor by which the host reads it, and so waits for the device."""
STEPS = 8


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trainer(folder: Path, model: ModelConfig, documents: str = "continue", **execution: object) -> Trainer:
    spec, workspace = prepared(folder, "bytes")
    physics = spec.physics.model_dump() | {"model": model, "tokens": 4 * STEPS * 16, "batch_tokens": 4 * 16}
    physics["data"] |= {"documents": documents}
    made = RunSpec.model_validate({"physics": physics, "execution": {"device": "cpu", "log_every": 100} | execution})
    run = workspace.run(made.run_id)
    run.create(made)
    run.attempt(1).mkdir(parents=True)
    run.set_state(State.RUNNING)
    world = World(0, 1, torch.device("cpu"))
    return Trainer(run, made, 1, world, open_prepared(made.physics.data, workspace), lambda: None)


LLAMA = LlamaConfig(vocab_size=256, embedding_dim=32, num_blocks=1, num_heads=1)
XLSTM = XLSTMConfig(vocab_size=256, embedding_dim=32, num_blocks=2, slstm_at=(1,))


@pytest.mark.parametrize("documents", ["continue", "reset"])
@pytest.mark.parametrize("model", [LLAMA, XLSTM], ids=["llama", "xlstm"])
def test_the_host_waits_at_most_once_a_step(
    tmp_path: Path, model: ModelConfig, documents: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, model, documents, micro_batch_sequences=2)
    made._optimizer_step()
    waits: list[str] = []
    for name in WAITS:
        original = getattr(Tensor, name)

        def counting(self: Tensor, *args: object, name: str = name, original: object = original) -> object:
            waits.append(name)
            return original(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(Tensor, name, counting)
    made._optimizer_step()
    # On a CPU nobody waits: there, clipping asks whether it has to multiply.
    assert sorted(waits) == ["__bool__", "tolist"]


@pytest.mark.parametrize("where", ["loss", "gradient norm"])
def test_nothing_moves_on_a_loss_or_gradient_that_is_no_number(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tmp_path, LLAMA)
    made._optimizer_step()
    before = {name: tensor.clone() for name, tensor in made.state.items()}
    add = made._add_gradients

    def poisoned(batch: object) -> Tensor:
        loss = add(batch)  # type: ignore[arg-type]
        if where == "loss":
            return loss * float("nan")
        made.parameters[0].grad[0, 0] = float("inf")  # type: ignore[index]
        return loss

    monkeypatch.setattr(made, "_add_gradients", poisoned)
    with pytest.raises(DivergedError, match=f"the {where} is (nan|inf) at step 2"):
        made._optimizer_step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state.items())
    assert {float(made.optimizer.state[one]["step"]) for one in made.parameters} == {1.0}


def test_an_update_is_that_of_adamw() -> None:
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    mine, other = (torch.optim.AdamW([one], lr=1.0, fused=True) for one in (ours, theirs))
    for step in range(3):
        for one in (ours, theirs):
            one.grad = torch.full((7,), 0.5 - step)
        update(mine, 0.1 / (step + 1), sound=torch.tensor(True))
        other.param_groups[0]["lr"] = 0.1 / (step + 1)
        other.step()
    assert torch.equal(ours, theirs)
    assert ours.grad is None


def test_steps_are_profiled_into_the_attempt_where_that_is_asked_for(tmp_path: Path) -> None:
    made = trainer(tmp_path, LLAMA, profile_steps=2)
    assert made.train(lambda: True)
    with gzip.open(made.run.trace_file(1)) as file:
        events = json.load(file)["traceEvents"]
    steps = {event["name"] for event in events if event["name"].startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#3", "ProfilerStep#4"}
    assert any("linear_cross_entropy" in event["name"] for event in events)
