"""Forms of scaling laws, as values: what they are called, what they need, how they predict.

A form predicts log loss from theta and the logarithms of its inputs, in operations that hold for complex numbers too:
its derivatives are taken by a complex step (Squire & Trapp 1998), exact to rounding. A new form is one function. Forms
that are special cases of E + (A/N^alpha + B/D^beta)^gamma say so by `structure`; `analysis.fitting.newton` fits them.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.findings import RefusalError
from analysis.laws.additive import SMALLEST, AdditiveLaw, Array, log_terms
from analysis.laws.structure import Structure
from xlstm.quantities import nearest

Complex = NDArray[Any]
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

    starts: Callable[[Array, Array, np.random.Generator, int], Array] | None = None
    """From log inputs (inputs, points), log loss (points,) and a count, where descents begin: theta (count, k)."""

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

    def jacobian(self, theta: Array, log_inputs: Array) -> Array:
        """Derivatives of log loss by theta: (problems, k, points)."""
        slopes = []
        inputs = log_inputs.astype(complex)
        for index in range(theta.shape[1]):
            shifted = theta[:, :, None].astype(complex)
            shifted[:, index] += COMPLEX_STEP * 1j
            slopes.append(self.evaluate(shifted, inputs).imag / COMPLEX_STEP)
        return np.stack(slopes, axis=1)


def _log_sum(*terms: Complex) -> Complex:
    stacked = np.stack(np.broadcast_arrays(*terms))
    top = stacked.real.max(axis=0)
    return np.asarray(top + np.log(np.exp(stacked - top).sum(axis=0)))


def _power(theta: Complex, x: Complex) -> Complex:
    return np.asarray(theta[:, 0] - theta[:, 1] * x[0])


def _power_with_floor(theta: Complex, x: Complex) -> Complex:
    return _log_sum(theta[:, 0] - theta[:, 1] * x[0], theta[:, 2])


def _additive(theta: Complex, x: Complex) -> Complex:
    return _log_sum(*log_terms(theta.swapaxes(0, 1), x[0], x[1]))


def _coupled(theta: Complex, x: Complex) -> Complex:
    by_size, by_data, floor = log_terms(theta[:, :5].swapaxes(0, 1), x[0], x[1])
    return _log_sum(theta[:, 5] * _log_sum(by_size, by_data), floor)


def _kaplan(theta: Complex, x: Complex) -> Complex:
    by_size, by_data = theta[:, 2], theta[:, 3]
    return by_data * _log_sum((theta[:, 0] - x[0]) * by_size / by_data, theta[:, 1] - x[1])


def _overtraining(theta: Complex, x: Complex) -> Complex:
    return _log_sum(*log_terms(theta[:, [0, 1, 2, 3, 3]].swapaxes(0, 1), x[0], x[1]))


def _data_constrained(theta: Complex, x: Complex) -> Complex:
    # Repetitions are D/U - 1; their worth decays with the scale R (Muennighoff et al. 2023, equation 5).
    unique = np.where(x[2].real < x[1].real, x[2], x[1])
    repeats = np.expm1(x[1] - unique)
    scale = np.exp(theta[:, 5])
    worth = unique + np.log1p(-scale * np.expm1(-repeats / scale))
    return _log_sum(*log_terms(theta[:, :5].swapaxes(0, 1), x[0], worth))


def _broken(theta: Complex, x: Complex) -> Complex:
    log_a, first, log_floor, log_break, second, sharpness = (theta[:, index] for index in range(6))
    beyond = _log_sum(np.zeros_like(x[0])[None], (x[0] - log_break) / sharpness)
    return _log_sum(log_a - first * x[0] - second * sharpness * beyond, log_floor)


def _farseer(theta: Complex, x: Complex) -> Complex:
    s, q, shift, b_scale, b, b_shift, a_scale, a, a_shift = (theta[:, index] for index in range(9))
    with np.errstate(all="ignore"):  # a step too far has an infinite loss and is not taken
        floor = s * np.exp(q * x[0]) + shift
        by_data = b_scale * np.exp(b * x[0]) + b_shift - np.exp(a_scale * np.exp(a * x[0]) + a_shift) * x[1]
    return _log_sum(floor, by_data)


def _farseer_starts(log_inputs: Array, log_loss: Array, random: np.random.Generator, count: int) -> Array:
    """The floor's share, the exponent of D and what D adds, at the smallest and at the largest N, and how they bend."""
    low, high = log_inputs[0].min(), log_inputs[0].max()

    def bent(at_low: Array, at_high: Array) -> list[Array]:
        power = random.uniform(0.05, 0.4, count) * random.choice([-1.0, 1.0], count)
        scale = (at_high - at_low) / (np.exp(power * high) - np.exp(power * low))
        return [scale, power, at_low - scale * np.exp(power * low)]

    floor = log_loss.min() + np.log(random.uniform(0.5, 0.98, count))
    exponent = np.log(random.uniform(0.1, 0.6, count))
    steeper = exponent + random.uniform(-0.3, 0.3, count)
    added, middle = log_loss.mean() + np.log(random.uniform(0.02, 0.3, (2, count))), log_inputs[1].mean()
    by_floor = bent(floor + random.uniform(0.0, 0.5, count), floor)
    by_data = bent(added[0] + np.exp(exponent) * middle, added[1] + np.exp(steeper) * middle)
    return np.stack([*by_floor, *by_data, *bent(exponent, steeper)], axis=1)


def _one_input(column: str, letter: str, *, floor: bool) -> Form:
    lower, upper = (-30.0, 1e-3), (80.0, 3.0)
    if not floor:
        return Form(
            f"power-{letter}",
            f"A/{letter}^alpha",
            (column,),
            ("log A", "alpha"),
            lower,
            upper,
            _power,
            "Kaplan et al. 2020, arXiv 2001.08361",
            Structure.of("A", "alpha"),
        )
    return Form(
        f"power-{letter}-floor",
        f"E + A/{letter}^alpha",
        (column,),
        ("log A", "alpha", "log E"),
        (*lower, -30.0),
        (*upper, 10.0),
        _power_with_floor,
        "Henighan et al. 2020, arXiv 2010.14701",
        Structure.of("A", "E", "alpha"),
    )


@dataclass(frozen=True)
class Split:
    """L(N, D) = E + (A/N^alpha + B/D^beta)^gamma: it is lowest where the sum inside is.

    So the compute-optimal split is that of the additive law `inner`, whose E is 0.
    """

    inner: AdditiveLaw
    E: float = 0.0
    gamma: float = 1.0

    @property
    def frontier_exponent(self) -> float:
        """k of the reducible loss at the compute-optimal split, which goes as C^-k."""
        return self.inner.frontier_exponent * self.gamma

    def to_vector(self) -> Array:
        """(log A, log B, log E, alpha, beta, gamma)."""
        return np.array([*replace(self.inner, E=self.E).to_vector(), self.gamma])


def _split(values: Mapping[str, float]) -> Split:
    exponents = (values["eta"], values["eta"]) if "eta" in values else (values["alpha"], values["beta"])
    return Split(AdditiveLaw(0.0, values["A"], values["B"], *exponents), values["E"], values.get("gamma", 1.0))


def _kaplan_split(values: Mapping[str, float]) -> Split:
    alpha = values["alpha"] / values["beta"]
    return Split(
        AdditiveLaw(0.0, float(np.float64(values["Nc"]) ** alpha), values["Dc"], alpha, 1.0), 0.0, values["beta"]
    )


_LETTERS = {"parameters": "N", "tokens": "D", "flops": "C"}
_ADDITIVE_NAMES = ("log A", "log B", "log E", "alpha", "beta")
_ADDITIVE_LOWER, _ADDITIVE_UPPER = (-30.0, -30.0, -30.0, 1e-3, 1e-3), (80.0, 80.0, 10.0, 3.0, 3.0)

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        *(_one_input(column, letter, floor=floor) for column, letter in _LETTERS.items() for floor in (False, True)),
        Form(
            "additive",
            "E + A/N^alpha + B/D^beta",
            ("parameters", "tokens"),
            _ADDITIVE_NAMES,
            _ADDITIVE_LOWER,
            _ADDITIVE_UPPER,
            _additive,
            "Hoffmann et al. 2022, arXiv 2203.15556",
            Structure.of("A", "B", "E", "alpha", "beta"),
            _split,
        ),
        Form(
            "coupled",
            "E + (A/N^alpha + B/D^beta)^gamma",
            ("parameters", "tokens"),
            (*_ADDITIVE_NAMES, "gamma"),
            (*_ADDITIVE_LOWER, 0.05),
            (*_ADDITIVE_UPPER, 5.0),
            _coupled,
            "Busbridge et al. 2025, arXiv 2502.08606; used for xLSTM by Beck et al. 2025, arXiv 2510.02228",
            Structure.of("A", "B", "E", "alpha", "beta", "gamma"),
            _split,
        ),
        Form(
            "kaplan",
            "((Nc/N)^(alpha/beta) + Dc/D)^beta",
            ("parameters", "tokens"),
            ("log Nc", "log Dc", "alpha", "beta"),
            (-30.0, -30.0, 1e-3, 1e-3),
            (120.0, 120.0, 3.0, 3.0),
            _kaplan,
            "Kaplan et al. 2020, arXiv 2001.08361, equation 1.5",
            Structure.of("A", "B", "alpha", "gamma", beta=1.0),
            _kaplan_split,
        ),
        Form(
            "overtraining",
            "E + A/N^eta + B/D^eta",
            ("parameters", "tokens"),
            ("log A", "log B", "log E", "eta"),
            _ADDITIVE_LOWER[:4],
            _ADDITIVE_UPPER[:4],
            _overtraining,
            "Gadre et al. 2024, arXiv 2403.08540, equation 4: at fixed D/N a power law in C with exponent eta/2",
            Structure.of("A", "B", "E", "alpha", tied=("beta", "alpha")),
            _split,
        ),
        Form(
            "data-constrained",
            "E + A/N^alpha + B/(U + U R (1 - exp(-(D/U - 1)/R)))^beta",
            ("parameters", "tokens", "unique_tokens"),
            (*_ADDITIVE_NAMES, "log R"),
            (*_ADDITIVE_LOWER, -5.0),
            (*_ADDITIVE_UPPER, 10.0),
            _data_constrained,
            "Muennighoff et al. 2023, arXiv 2305.16264, equation 5, repetition of data alone",
            split=_split,
        ),
        Form(
            "farseer",
            "exp(s N^q + S) + exp(B N^b + Q) / D^exp(A N^a + V)",
            ("parameters", "tokens"),
            ("s", "q", "S", "B", "b", "Q", "A", "a", "V"),
            (-1e4, -1.0, -100.0) * 3,
            (1e4, 1.0, 100.0) * 3,
            _farseer,
            "Li et al. 2025, arXiv 2506.10972, where S, Q and V are S, Q and E",
            starts=_farseer_starts,
        ),
        Form(
            "broken",
            "E + A/C^alpha (1 + (C/C1)^(1/f))^(-kappa f)",
            ("flops",),
            ("log A", "alpha", "log E", "log C1", "kappa", "f"),
            (-30.0, 1e-3, -30.0, -10.0, -3.0, 0.05),
            (80.0, 3.0, 10.0, 90.0, 3.0, 5.0),
            _broken,
            "Caballero et al. 2023, arXiv 2210.14891, equation 1 with one break",
        ),
    )
}
ADDITIVE = FORMS["additive"]


def find(name: str) -> Form:
    """The form of that name. RefusalError that names the nearest one."""
    if name not in FORMS:
        raise RefusalError("no-such-form", f"no form `{name}`; {nearest(name, FORMS)}")
    return FORMS[name]


def no_split(form: Form) -> RefusalError:
    """The refusal of a form that does not say how compute is best split, or not in closed form."""
    told = f"{form.name}, {form.formula}, "
    if form.splits:
        return RefusalError("no-split", f"{told}splits compute between N and D in no closed form")
    able = ", ".join(other.name for other in FORMS.values() if other.splits)
    return RefusalError(
        "no-split", f"{told}does not say how to split compute between N and D; fit one that does: {able}"
    )


@dataclass(frozen=True)
class FormLaw:
    """A form with its parameters: what `AdditiveLaw` is for the additive one."""

    form: Form
    values: Mapping[str, float]
    """The parameters by name, coefficients as they are."""

    @property
    def theta(self) -> Array:
        """The form's coordinates (k,)."""
        return self.form.theta(self.values)

    def predict(self, parameters: ArrayLike, tokens: ArrayLike) -> Array:
        """Loss in nats per token at N parameters and D tokens; broadcasts. `Form.log_inputs` says the rest."""
        return np.asarray(self.form.loss(self.theta[None], self.form.log_inputs(parameters, tokens))[0])

    def to_vector(self) -> Array:
        """(log A, log B, log E, alpha, beta, gamma) of E + (A/N^alpha + B/D^beta)^gamma. RefusalError as `split`."""
        return self.split.to_vector()

    @property
    def split(self) -> Split:
        """How the loss depends on N and D. RefusalError where the form does not say how compute is best split."""
        if self.form.split is None:
            raise no_split(self.form)
        return self.form.split(self.values)

    @property
    def E(self) -> float:
        """The irreducible loss. RefusalError as `split`."""
        return self.split.E

    @property
    def parameters_exponent(self) -> float:
        """a of N* ~ C^a: the compute-optimal split under C = 6ND. RefusalError as `split`."""
        return self.split.inner.parameters_exponent

    @property
    def frontier_exponent(self) -> float:
        """k of the reducible loss at the compute-optimal split, which goes as C^-k. RefusalError as `split`."""
        return self.split.frontier_exponent

    def compute_optimal(self, flops: ArrayLike) -> tuple[Array, Array]:
        """(N*, D*) that minimise the loss at C = 6ND. RefusalError as `split`."""
        return self.split.inner.compute_optimal(flops)


Law = AdditiveLaw | FormLaw


def law_of(form: Form, theta: Array) -> Law:
    """The law that a form is with theta (k,)."""
    if form is ADDITIVE:
        return AdditiveLaw.from_vector(theta)
    return FormLaw(form, {name: float(value) for name, value in form.parameters(theta).items()})
