"""AdamW with decay groups, or Muon beside it, their state as plain tensors, and the clipping of gradients."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from xlstm.run.spec import Optimizer
from xlstm.training.optimization.muon import BY_MUON, MOMENTUM_BUFFER, Muon
from xlstm.training.optimization.parametrization import STANDARD, Factors, named_parameters

RATE = "rate"
"""The key of a group's factor of the learning rate."""


def build_optimizer(
    model: nn.Module, optimizer: Optimizer, factors: Mapping[str, Factors] = STANDARD
) -> torch.optim.AdamW:
    """AdamW; weight decay falls on the parameters that `model.decays(name, parameter)` names.

    Those of them that `model.recurs(name)` names have one of their own where the optimizer states it. With Muon, the
    parameters that `model.is_matrix(name, parameter)` names are moved by it. Rates are times those of `factors`.
    """
    groups: dict[tuple[float, bool, float, float], list[nn.Parameter]] = {}
    groups[optimizer.weight_decay, False, 1.0, 1.0] = []
    for name, parameter in named_parameters(model):
        decay = optimizer.weight_decay if model.decays(name, parameter) else 0.0  # type: ignore[operator]
        if decay and optimizer.recurrent_weight_decay is not None and model.recurs(name):  # type: ignore[operator]
            decay = optimizer.recurrent_weight_decay
        by_muon = optimizer.name == "muon" and model.is_matrix(name, parameter)  # type: ignore[operator]
        own = factors.get(name, Factors())
        rate = own.muon_rate if by_muon else own.rate
        groups.setdefault((decay / rate, by_muon, rate, own.epsilon), []).append(parameter)
    kind = Muon if optimizer.name == "muon" else torch.optim.AdamW
    return kind(
        [
            {"params": members, "weight_decay": decay, RATE: rate, "eps": optimizer.epsilon * epsilon, BY_MUON: by_muon}
            for (decay, by_muon, rate, epsilon), members in groups.items()
            if members
        ],
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        fused=True,
    )


def training_state(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """All that training continues from, as a flat mapping of tensors; missing moments are made, as zeros.

    The tensors are those of the model and optimizer themselves, so that loading into them restores both. What is not a
    tensor (the step) belongs to the checkpoint's own record.
    """
    state: dict[str, torch.Tensor] = {}
    matrices = {id(one) for group in optimizer.param_groups if group.get(BY_MUON) for one in group["params"]}
    for name, parameter in named_parameters(model):
        moments = optimizer.state[parameter]
        for moment in (MOMENTUM_BUFFER,) if id(parameter) in matrices else ("exp_avg", "exp_avg_sq"):
            if moment not in moments:
                moments[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state[f"{moment}.{name}"] = moments[moment]
        state[f"model.{name}"] = parameter.detach()
    return state


def set_step(optimizer: torch.optim.AdamW, step: int) -> None:
    """Tell AdamW how many updates its moments have seen: its bias correction depends on it."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["step"] = torch.tensor(float(step), device=parameter.device)


def update(optimizer: torch.optim.AdamW, rate: float, *, sound: torch.Tensor) -> None:
    """Move the weights at a learning rate, and drop the gradients; where `sound` (bool, 0-d) is false nothing moves.

    AdamW's fused step reads that on the device, by the way that torch.amp.GradScaler tells it of infinities.
    """
    set_learning_rate(optimizer, rate)
    optimizer.found_inf = (~sound).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()


def set_learning_rate(optimizer: torch.optim.AdamW, rate: float) -> None:
    """Learning rate of the next update."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATE, 1.0)


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float | None) -> torch.Tensor:
    """Scale gradients down to a global norm of at most `limit`; returns the norm before, over all ranks, 0-d.

    What torch.nn.utils.clip_grad_norm_ does, bit for bit, less its checks of every gradient. Nobody waits for a GPU; on
    a CPU products by one are left out.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # torch._foreach_* have no public name; torch.nn.utils.clip_grad_norm_ calls the same two.
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    if limit is not None:
        coefficient = torch.clamp(limit / (norm + 1e-6), max=1.0)
        if norm.device.type != "cpu" or coefficient != 1:
            torch._foreach_mul_(gradients, coefficient)
    return norm
