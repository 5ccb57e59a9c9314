"""The LSTM: the fused layer equals the recurrence in float64, documents and states included."""

import pytest
import torch
from torch import Tensor, nn

from kernels.dispatch import ImplementationError
from kernels.lstm import LSTMState, lstm

NAMES = ("x", "weight_input", "weight_hidden", "bias_input", "bias_hidden", "h", "c")


def inputs(batch: int, time: int, dtype: torch.dtype, channels: int = 6, features: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, time, features), (4 * channels, features), (4 * channels, channels)]
    shapes += [(4 * channels,)] * 2 + [(batch, channels)] * 2
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in zip(NAMES, shapes, strict=True)
    }


def outputs_and_gradients(tensors: dict[str, Tensor], resets: Tensor | None, implementation: str) -> dict[str, Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    arguments = [leaves[name] for name in NAMES[:5]]
    state = LSTMState(leaves["h"], leaves["c"])
    y, final = lstm(*arguments, initial_state=state, resets=resets, implementation=implementation)
    generator = torch.Generator().manual_seed(3)
    outputs = (y, final.h, final.c)
    loss = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]
    gradients = torch.autograd.grad(outputs, tuple(leaves.values()), loss)
    named = dict(zip((f"d{name}" for name in NAMES), gradients, strict=True))
    return {"y": y.detach(), "final_h": final.h.detach(), "final_c": final.c.detach()} | named


@pytest.mark.parametrize("reset_rate", [None, 0.0, 0.2, 1.0])
@pytest.mark.parametrize(("batch", "time"), [(1, 1), (3, 17)])
def test_fused_equals_the_float64_recurrence(batch: int, time: int, reset_rate: float | None) -> None:
    resets = None
    if reset_rate is not None:
        resets = torch.rand(batch, time, generator=torch.Generator().manual_seed(1)) < reset_rate
    expected = outputs_and_gradients(inputs(batch, time, torch.float64), resets, "reference")
    actual = outputs_and_gradients(inputs(batch, time, torch.float32), resets, "torch")
    for name, value in expected.items():
        if value.norm() == 0:  # every token its own document: nothing reaches the initial state
            assert actual[name].norm() == 0, name
            continue
        error = (actual[name].double() - value).norm() / value.norm()
        assert error < 20 * torch.finfo(torch.float32).eps, f"{name}: relative error {error:.2e}"


def test_reference_equals_the_layer_of_pytorch() -> None:
    layer = nn.LSTM(5, 6, batch_first=True).double()
    x = torch.randn(2, 9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = [layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0]
    y, state = lstm(x, *weights, implementation="reference")
    expected, (h, c) = layer(x)
    for ours, theirs in ((y, expected), (state.h, h[0]), (state.c, c[0])):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_wrong_requests_are_named() -> None:
    tensors = inputs(2, 3, torch.float32)
    arguments = [tensors[name] for name in NAMES[:5]]
    with pytest.raises(ImplementationError, match="'triton' is none of auto, torch, reference"):
        lstm(*arguments, implementation="triton")
    with pytest.raises(ValueError, match=r"bias_hidden has shape \(3,\), expected \(24,\)"):
        lstm(*arguments[:4], torch.zeros(3))
