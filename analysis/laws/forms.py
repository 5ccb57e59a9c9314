"""The forms there are, by name, and the law that a form is with its parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from analysis.findings import RefusalError
from analysis.laws import functions
from analysis.laws.additive import AdditiveLaw, Array
from analysis.laws.form import Form, Split
from analysis.laws.functions import Complex
from analysis.laws.structure import Structure
from xlstm.quantities import nearest

__all__ = ["FORMS", "Complex", "Form", "FormLaw", "Law", "Split", "find", "law_of", "mixture", "no_split"]


def mixture(columns: Sequence[str]) -> Form:
    """The loss of a mixture of texts by their shares, (0, 1] each, in columns of these names."""
    return Form(
        f"mixture[{','.join(columns)}]",
        f"E + K exp({' + '.join(f't_{column} {column}' for column in columns)})",
        tuple(columns),
        ("log E", "log K", *(f"t_{column}" for column in columns)),
        (-30.0, -30.0, *(-50.0 for _ in columns)),
        (10.0, 30.0, *(50.0 for _ in columns)),
        functions.mixture,
        "Ye et al. 2024, arXiv 2403.16952, equation 1",
        starts=functions.mixture_starts,
    )


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
            functions.power,
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
        functions.power_with_floor,
        "Henighan et al. 2020, arXiv 2010.14701",
        Structure.of("A", "E", "alpha"),
    )


def _split(values: Mapping[str, float]) -> Split:
    exponents = (values["eta"], values["eta"]) if "eta" in values else (values["alpha"], values["beta"])
    return Split(AdditiveLaw(0.0, values["A"], values["B"], *exponents), values["E"], values.get("gamma", 1.0))


def _kaplan_split(values: Mapping[str, float]) -> Split:
    alpha = values["alpha"] / values["beta"]
    return Split(
        AdditiveLaw(0.0, float(np.float64(values["Nc"]) ** alpha), values["Dc"], alpha, 1.0), 0.0, values["beta"]
    )


LETTERS = {"parameters": "N", "tokens": "D", "flops": "C"}
_ADDITIVE_NAMES = ("log A", "log B", "log E", "alpha", "beta")
_ADDITIVE_LOWER, _ADDITIVE_UPPER = (-30.0, -30.0, -30.0, 1e-3, 1e-3), (80.0, 80.0, 10.0, 3.0, 3.0)

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        *(_one_input(column, letter, floor=floor) for column, letter in LETTERS.items() for floor in (False, True)),
        Form(
            "additive",
            "E + A/N^alpha + B/D^beta",
            ("parameters", "tokens"),
            _ADDITIVE_NAMES,
            _ADDITIVE_LOWER,
            _ADDITIVE_UPPER,
            functions.additive,
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
            functions.coupled,
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
            functions.kaplan,
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
            functions.overtraining,
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
            functions.data_constrained,
            "Muennighoff et al. 2023, arXiv 2305.16264, equation 5, repetition of data alone",
            split=_split,
        ),
        Form(
            "data-constrained-both",
            "E + A/(Un + Un R_N (1 - exp(-(N/Un - 1)/R_N)))^alpha + B/(U + U R (1 - exp(-(D/U - 1)/R)))^beta",
            ("parameters", "tokens", "unique_tokens"),
            (*_ADDITIVE_NAMES, "log R", "log R_N"),
            (*_ADDITIVE_LOWER, -5.0, -5.0),
            (*_ADDITIVE_UPPER, 10.0, 10.0),
            functions.data_constrained_both,
            "Muennighoff et al. 2023, arXiv 2305.16264, equations 5 and 6; Un is the N that is optimal with U tokens",
            split=_split,
        ),
        Form(
            "vocabulary",
            "E + A/N^alpha + V/Nv^nu + B/D^beta",
            ("non_embedding", "vocabulary_parameters", "tokens"),
            ("log E", "log A", "alpha", "log V", "nu", "log B", "beta"),
            (-30.0, *(-30.0, 1e-3) * 3),
            (10.0, *(80.0, 3.0) * 3),
            functions.vocabulary,
            "Tao et al. 2024, arXiv 2407.13623, equation 6, N without and Nv of the vocabulary; a loss that compares",
            starts=functions.powers_starts,
        ),
        Form(
            "experts",
            "exp(d) / (N^a X^b) exp(c log N log X)",
            ("parameters", "experts"),
            ("d", "a", "b", "c"),
            (-50.0, -3.0, -3.0, -1.0),
            (50.0, 3.0, 3.0, 1.0),
            functions.experts,
            "Clark et al. 2022, arXiv 2202.01169, equation 5: X experts a layer, N of the model without them",
        ),
        Form(
            "granularity",
            "E + (A + G0/G^gamma)/N^alpha + B/D^beta",
            ("parameters", "tokens", "granularity"),
            ("log E", "log A", "alpha", "log B", "beta", "log G0", "gamma"),
            (-30.0, -30.0, 1e-3, -30.0, 1e-3, -30.0, 1e-3),
            (10.0, 80.0, 3.0, 80.0, 3.0, 80.0, 5.0),
            functions.granularity,
            "Krajewski et al. 2024, arXiv 2402.07871, equation 9: experts G times as fine as the dense layer",
            starts=functions.granularity_starts,
        ),
        Form(
            "farseer",
            "exp(s N^q + S) + exp(B N^b + Q) / D^exp(A N^a + V)",
            ("parameters", "tokens"),
            ("s", "q", "S", "B", "b", "Q", "A", "a", "V"),
            (-1e4, -1.0, -100.0) * 3,
            (1e4, 1.0, 100.0) * 3,
            functions.farseer,
            "Li et al. 2025, arXiv 2506.10972, where S, Q and V are S, Q and E",
            derivatives=functions.farseer_derivatives,
            starts=functions.farseer_starts,
        ),
        Form(
            "broken",
            "E + A/C^alpha (1 + (C/C1)^(1/f))^(-kappa f)",
            ("flops",),
            ("log A", "alpha", "log E", "log C1", "kappa", "f"),
            (-30.0, 1e-3, -30.0, -10.0, -3.0, 0.05),
            (80.0, 3.0, 10.0, 90.0, 3.0, 5.0),
            functions.broken,
            "Caballero et al. 2023, arXiv 2210.14891, equation 1 with one break",
        ),
    )
}
ADDITIVE = FORMS["additive"]


@lru_cache
def find(name: str) -> Form:
    """The form of that name. RefusalError that names the nearest one.

    `NAME[A=521,alpha=0.1:9]` is a form `within` these limits, `mixture[web,code]` that of shares in these columns.
    """
    base, bracket, rest = name.partition("[")
    words = [word.strip() for word in rest.removesuffix("]").split(",")] if bracket else []
    if base == "mixture" and all(words) and words:
        return mixture(words)
    if base not in FORMS:
        raise RefusalError("no-such-form", f"no form `{name}`; {nearest(base, [*FORMS, 'mixture[COLUMN,…]'])}")
    return FORMS[base].within(dict(map(_limit, words))) if words else FORMS[base]


def _limit(word: str) -> tuple[str, float | tuple[float, float]]:
    name, equals, limit = word.partition("=")
    try:
        numbers = [float(number) for number in limit.split(":")]
    except ValueError:
        numbers = []
    if not (name and equals and 1 <= len(numbers) <= 2):
        raise RefusalError(
            "no-such-bounds", f"`{word}`: write a parameter held, alpha=0.34, or its bounds, alpha=0.1:9"
        )
    return name.strip(), numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


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

    def predict(self, parameters: ArrayLike, tokens: ArrayLike) -> Array:
        """Loss in nats per token at N parameters and D tokens; broadcasts. `Form.log_inputs` says the rest."""
        theta = self.form.theta(self.values)
        return np.asarray(self.form.loss(theta[None], self.form.log_inputs(parameters, tokens))[0])

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
    def parameters_exponent(self) -> float:
        """a of N* ~ C^a: the compute-optimal split under C = 6ND. RefusalError as `split`."""
        return self.split.inner.parameters_exponent

    def compute_optimal(self, flops: ArrayLike) -> tuple[Array, Array]:
        """(N*, D*) that minimise the loss at C = 6ND. RefusalError as `split`."""
        return self.split.inner.compute_optimal(flops)


Law = AdditiveLaw | FormLaw


def law_of(form: Form, theta: Array) -> Law:
    """The law that a form is with theta (k,)."""
    if form is ADDITIVE:
        return AdditiveLaw.from_vector(theta)
    return FormLaw(form, {name: float(value) for name, value in form.parameters(theta).items()})
