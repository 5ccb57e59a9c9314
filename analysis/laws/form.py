"""A form of a scaling law as a value: what it is called, what it needs, how it predicts.

A form predicts log loss from theta and the logarithms of its inputs, in operations that hold for complex numbers too:
its derivatives, where it gives none, are taken by a complex step (Squire & Trapp 1998), exact to rounding. A new form
is one function. Forms that are special cases of E + (A/N^alpha + B/D^beta)^gamma say so by `structure`;
`analysis.fitting.newton` fits them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from analysis.findings import RefusalError
from analysis.laws.additive import SMALLEST, AdditiveLaw, Array
from analysis.laws.functions import Complex
from analysis.laws.objectives import short
from analysis.laws.structure import Structure
from xlstm.quantities import nearest

COMPLEX_STEP = 1e-30
INPUTS = ("parameters", "tokens", "flops", "unique_tokens")


@dataclass(frozen=True)
class Form:
    """L as a function of `inputs`. Coefficients are fitted as logarithms (`log A`), exponents as they are."""

    name: str
    formula: str
    inputs: tuple[str, ...]
    """Columns of the frame, in the order in which `evaluate` takes their logarithms."""
    coordinates: tuple[str, ...]
    """Names of theta's entries; those that begin with `log ` are logarithms of coefficients."""
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    evaluate: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]
    """From theta (problems, k, 1) and log inputs (inputs, points) to log loss (problems, points), real or complex."""
    source: str
    structure: Structure | None = None
    split: Callable[[Mapping[str, float]], "Split"] | None = None
    """How the loss of data seen once depends on N and D, from the parameters by name; None for a form that does not say
    how compute is best split between them."""
    derivatives: Callable[[Array, Array], Array] | None = None
    """Of log loss by theta, (problems, k, points) from what `evaluate` takes, where they are known by hand: a complex
    step costs ten times as much."""
    starts: Callable[[Array, Array, np.random.Generator, int], Array] | None = None
    """From log inputs (inputs, points), log loss (points,) and a count, where descents begin: theta (count, k)."""
    whole: "Form | None" = None
    """The form of which this one has parameters held, `held` by name."""
    held: Mapping[str, float] = field(default_factory=dict)

    @property
    def of_n_and_d(self) -> bool:
        """Whether it is predicted at N and D (and the compute and unique tokens that go with them), no other column."""
        return set(self.inputs) <= set(INPUTS)

    def within(self, limits: Mapping[str, float | tuple[float, float]]) -> "Form":
        """This form with some parameters held at a number, or between two bounds, each as it is, not as a logarithm.

        RefusalError for a parameter that it does not have, or that cannot lie there.
        """
        plain = [name.removeprefix("log ") for name in self.coordinates]
        lower, upper = list(self.lower), list(self.upper)
        held: dict[str, float] = {}
        for name, limit in limits.items():
            if name not in plain:
                raise RefusalError(
                    "no-such-parameter", f"{self.name} has no parameter `{name}`; {nearest(name, plain)}"
                )
            bounds = limit if isinstance(limit, tuple) else (limit, limit)
            logarithmic = f"log {name}" in self.coordinates
            if not bounds[0] <= bounds[1] or (logarithmic and bounds[0] < 0):
                raise RefusalError(
                    "no-such-bounds", f"{self.name}: {name} cannot lie between {bounds[0]} and {bounds[1]}"
                )
            ends = [math.log(max(end, SMALLEST)) if logarithmic else end for end in bounds]
            index = plain.index(name)
            lower[index], upper[index] = ends
            if not isinstance(limit, tuple):
                held[name] = limit
        said = [f"{name}={_range(limit)}" for name, limit in limits.items()]
        bounded = replace(
            self, name=f"{self.name}[{','.join(said)}]", lower=tuple(lower), upper=tuple(upper), structure=None
        )
        return _holding(bounded, self, held, plain) if held else bounded

    @property
    def splits(self) -> bool:
        """Whether the loss depends on both N and D, so that one may ask how compute is best split between them."""
        return {"parameters", "tokens"} <= set(self.inputs)

    def from_centered(self, six: Array, center: Array) -> Array:
        """Theta (problems, k) from the optimizer's (problems, 6), `center` being the mean of each log input."""
        log_a, log_b, log_e = np.log(np.maximum(six[:, :3], SMALLEST)).T
        _, _, _, alpha, beta, gamma = six.T
        first, second = center[0], center[-1]
        named = {
            "log A": log_a + alpha * first,
            "log B": log_b + beta * second,
            "log E": log_e,
            "alpha": alpha,
            "beta": beta,
            "gamma": gamma,
            "eta": alpha,
        }
        if self.name == "kaplan":  # (Nc/N)^(alpha/beta) and Dc/D, raised to beta
            named |= {"log Nc": log_a / alpha + first, "log Dc": log_b + second, "alpha": alpha * gamma, "beta": gamma}
        return np.stack([named[name] for name in self.coordinates], axis=1)

    def parameters(self, theta: Array) -> dict[str, Array]:
        """Columns of theta (..., k) by name, coefficients no longer as logarithms."""
        columns = np.moveaxis(theta, -1, 0)
        with np.errstate(over="ignore"):  # a coefficient that no number holds is infinite
            return {
                name.removeprefix("log "): np.exp(column) if name.startswith("log ") else column
                for name, column in zip(self.coordinates, columns, strict=True)
            }

    def theta(self, parameters: Mapping[str, float]) -> Array:
        """Theta (k,) from what `parameters` names; a coefficient of zero is stored as SMALLEST."""
        logarithms = [name.startswith("log ") for name in self.coordinates]
        values = [parameters[name.removeprefix("log ")] for name in self.coordinates]
        return np.array(
            [math.log(max(value, SMALLEST)) if log else value for log, value in zip(logarithms, values, strict=True)]
        )

    def log_inputs(
        self,
        parameters: ArrayLike,
        tokens: ArrayLike,
        flops: ArrayLike | None = None,
        unique_tokens: ArrayLike | None = None,
    ) -> Array:
        """Logarithms of the form's inputs (inputs, *broadcast shape) for models of N parameters trained on D tokens.

        Compute left out is 6ND; tokens are all different where `unique_tokens` is left out. RefusalError for a form
        that needs anything else.
        """
        n, d = np.broadcast_arrays(np.asarray(parameters, float), np.asarray(tokens, float))
        compute, unique = 6 * n * d if flops is None else flops, d if unique_tokens is None else unique_tokens
        known = dict(zip(INPUTS, (n, d, compute, unique), strict=True))
        if not set(self.inputs) <= set(known):
            raise RefusalError("other-inputs", f"{self.name} is a law of {', '.join(self.inputs)}, not of N and D")
        return np.asarray(np.log(np.stack([np.broadcast_to(known[name], n.shape) for name in self.inputs])))

    def loss(self, theta: Array, log_inputs: Array) -> Array:
        """Loss for each row of `theta` (problems, k) at inputs (inputs, *shape): (problems, *shape)."""
        points = log_inputs.reshape(len(self.inputs), -1)
        return np.asarray(np.exp(self.log_loss(theta, points)).reshape(len(theta), *log_inputs.shape[1:]))

    def log_loss(self, theta: Array, log_inputs: Array) -> Array:
        """Log loss (problems, points) for each row of `theta` (problems, k).

        `log_inputs` are (inputs, points), or (inputs, problems, points) where each row has its own.
        """
        return np.asarray(self.evaluate(theta[:, :, None], log_inputs))

    def log_inputs_of(self, frame: pl.DataFrame) -> Array:
        """Logarithms of the inputs at the rows of a frame: (inputs, rows)."""
        return np.stack([np.log(frame[name].cast(pl.Float64).to_numpy()) for name in self.inputs])

    def jacobian(self, theta: Array, log_inputs: Array) -> Array:
        """Derivatives of log loss by theta: (problems, k, points)."""
        if self.derivatives is not None:
            return self.derivatives(theta[:, :, None], log_inputs)
        slopes = []
        inputs = log_inputs.astype(complex)
        for index in range(theta.shape[1]):
            shifted = theta[:, :, None].astype(complex)
            shifted[:, index] += COMPLEX_STEP * 1j
            slopes.append(self.evaluate(shifted, inputs).imag / COMPLEX_STEP)
        return np.stack(slopes, axis=1)


def _range(limit: float | tuple[float, float]) -> str:
    return ":".join(map(short, limit)) if isinstance(limit, tuple) else short(limit)


def _holding(bounded: Form, whole: Form, held: Mapping[str, float], plain: Sequence[str]) -> Form:
    """A form without the coordinates that are held."""
    free = [index for index, name in enumerate(plain) if name not in held]
    fixed = np.array(bounded.lower)

    def full(theta: Complex) -> Complex:
        every = np.broadcast_to(fixed[:, None], (len(theta), len(fixed), 1)).astype(theta.dtype)
        every[:, free] = theta
        return every

    split, derivatives = whole.split, whole.derivatives
    return replace(
        bounded,
        formula=f"{whole.formula}, {', '.join(f'{name} = {value:g}' for name, value in held.items())}",
        coordinates=tuple(whole.coordinates[index] for index in free),
        lower=tuple(bounded.lower[index] for index in free),
        upper=tuple(bounded.upper[index] for index in free),
        evaluate=lambda theta, x: whole.evaluate(full(theta), x),
        derivatives=None if derivatives is None else lambda theta, x: derivatives(full(theta), x)[:, free],
        split=None if split is None else lambda values: split({**held, **values}),
        starts=None,
        whole=whole,
        held=dict(held),
    )


@dataclass(frozen=True)
class Split:
    """L(N, D) = E + (A/N^alpha + B/D^beta)^gamma: it is lowest where the sum inside is.

    So the compute-optimal split is that of the additive law `inner`, whose E is 0.
    """

    inner: AdditiveLaw
    E: float = 0.0
    gamma: float = 1.0

    def to_vector(self) -> Array:
        """(log A, log B, log E, alpha, beta, gamma)."""
        return np.array([*replace(self.inner, E=self.E).to_vector(), self.gamma])
