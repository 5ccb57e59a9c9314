"""What is missing or contradictory in an operator's declaration is said when it is declared."""

from collections import namedtuple
from typing import Any

import pytest
import torch

from kernels.dispatch import modules
from kernels.operator import DeclarationError, Operator, _bundling

Pair = namedtuple("Pair", ["weight", "x"])
COMPLETE: dict[str, Any] = {
    "schema": "(Tensor x, Tensor weight, float eps, str implementation) -> (Tensor y, Tensor scale)",
    "backward": "(grad_y, x, weight, scale, implementation) -> (x, weight)",
    "modules": modules("kernels.rms_norm", torch="torch_fused"),
    "results": lambda x: (x.new_empty(x.shape), x.new_empty(x.shape[:-1])),
    "flops": 0,
}


@pytest.mark.parametrize("missing", ["backward", "modules", "results", "flops"])
def test_a_missing_part_is_named(missing: str) -> None:
    parts = {name: part for name, part in COMPLETE.items() if name not in (missing, "schema")}
    with pytest.raises(TypeError, match=f"'{missing}'"):
        Operator("incomplete", COMPLETE["schema"], **parts)
    assert not hasattr(torch.ops.scaling, "incomplete")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema": "(Tensor x, Tensor weight)"}, r"has no results, expected \(arguments\) -> \(results\)"),
        ({"schema": "(Tensor x, Tensor, str implementation) -> (Tensor y)"}, "'Tensor' in the schema has no name"),
        (
            {"backward": "(x, weight, implementation) -> (x)"},
            "takes gradients of nothing, expected some of .* y, scale",
        ),
        ({"backward": "(grad_z, x, implementation) -> (x)"}, "gradients of z, expected some of the results, y, scale"),
        (
            {"backward": "(grad_y, x, bias, implementation) -> (x)"},
            "takes .*bias.*of x, weight, eps, implementation, y",
        ),
        ({"backward": "(grad_y, eps, x, implementation) -> (x)"}, "then tensors, then what is no tensor"),
        ({"backward": "(grad_y, x, implementation) -> (x, eps)"}, "gives a gradient of eps, which is no tensor"),
        ({"backward": "(grad_y?, grad_scale, x, implementation) -> (x)"}, "expected all or none"),
        ({"backward": "(grad_y, x, implementation) -> (x, weight)"}, "does not take weight, so `gradients` must say"),
        ({"results": lambda x, gate: (x, gate)}, "results asks for gate, which is none of x, weight, eps"),
        ({"gradients": lambda y: (y, y)}, "gradients asks for y, which is none of grad_y, x, weight, scale"),
        ({"flops": lambda rows: rows[0]}, "flops asks for rows, which is none of x, weight, eps"),
        ({"bundles": [Pair]}, "Pair is weight, x, which do not follow one another in x, weight, eps"),
    ],
)
def test_what_does_not_fit_together_is_said(changed: dict[str, Any], message: str) -> None:
    parts = COMPLETE | changed
    with pytest.raises(DeclarationError, match=f"incomplete: .*{message}"):
        Operator("incomplete", parts.pop("schema"), **parts)
    assert not hasattr(torch.ops.scaling, "incomplete")


def test_fields_of_a_bundle_come_as_one_or_not_at_all() -> None:
    takes = dict.fromkeys(("grad_y", "weight", "x", "eps"), "Tensor")
    bundled = _bundling("toy", takes, [Pair])
    assert bundled((1, 2, 3, 4)) == [1, Pair(weight=2, x=3), 4]
    assert bundled((1, None, None, 4)) == [1, None, 4]
    assert _bundling("toy", {"x": "Tensor"}, [Pair])((1,)) == (1,)
