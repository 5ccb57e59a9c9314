"""What the forms compute: log loss from theta and the logarithms of the inputs, in operations on complex numbers.

`theta` is (problems, k, 1), so that `theta[:, i]` is a column of problems; `x[i]` are the logarithms of one input,
(points,) or (problems, points).
"""

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.laws.additive import Array, log_terms

Complex = NDArray[Any]


def log_sum(*terms: Complex) -> Complex:
    top = reduce(np.maximum, [term.real for term in terms])
    with np.errstate(invalid="ignore"):  # of terms that no number holds there is no sum
        return np.asarray(top + np.log(sum(np.exp(term - top) for term in terms)))


def power(theta: Complex, x: Complex) -> Complex:
    return np.asarray(theta[:, 0] - theta[:, 1] * x[0])


def power_with_floor(theta: Complex, x: Complex) -> Complex:
    return log_sum(theta[:, 0] - theta[:, 1] * x[0], theta[:, 2])


def additive(theta: Complex, x: Complex) -> Complex:
    return log_sum(*log_terms(theta.swapaxes(0, 1), x[0], x[1]))


def coupled(theta: Complex, x: Complex) -> Complex:
    by_size, by_data, floor = log_terms(theta[:, :5].swapaxes(0, 1), x[0], x[1])
    return log_sum(theta[:, 5] * log_sum(by_size, by_data), floor)


def kaplan(theta: Complex, x: Complex) -> Complex:
    by_size, by_data = theta[:, 2], theta[:, 3]
    with np.errstate(invalid="ignore"):
        return by_data * log_sum((theta[:, 0] - x[0]) * by_size / by_data, theta[:, 1] - x[1])


def overtraining(theta: Complex, x: Complex) -> Complex:
    return log_sum(*log_terms(theta[:, [0, 1, 2, 3, 3]].swapaxes(0, 1), x[0], x[1]))


def data_constrained(theta: Complex, x: Complex) -> Complex:
    # Repetitions are D/U - 1; their worth decays with the scale R.
    unique = np.where(x[2].real < x[1].real, x[2], x[1])
    repeats = np.expm1(x[1] - unique)
    scale = np.exp(theta[:, 5])
    worth = unique + np.log1p(-scale * np.expm1(-repeats / scale))
    return log_sum(*log_terms(theta[:, :5].swapaxes(0, 1), x[0], worth))


def data_constrained_both(theta: Complex, x: Complex) -> Complex:
    """As `data_constrained`, and parameters beyond those that the unique tokens ask for are worth less, by R_N.

    U_N is the N that is compute-optimal with U tokens: (alpha A U^beta / (beta B))^(1 / alpha).
    """
    log_a, log_b, _, alpha, beta, _, log_scale = (theta[:, index] for index in range(7))
    unique = np.where(x[2].real < x[1].real, x[2], x[1])
    enough = (np.log(alpha / beta) + log_a - log_b + beta * unique) / alpha
    enough = np.where(enough.real < x[0].real, enough, x[0])
    scale = np.exp(log_scale)
    with np.errstate(over="ignore"):  # no number of parameters makes up for tokens that are not there
        worth = enough + np.log1p(-scale * np.expm1(-np.expm1(x[0] - enough) / scale))
    return data_constrained(theta[:, :6], np.stack(np.broadcast_arrays(worth, x[1], x[2])))


def vocabulary(theta: Complex, x: Complex) -> Complex:
    """E + A/N^alpha + V/Nv^nu + B/D^beta; theta is (log E, log A, alpha, log V, nu, log B, beta)."""
    return log_sum(theta[:, 0], *(theta[:, 2 * i + 1] - theta[:, 2 * i + 2] * x[i] for i in range(3)))


def experts(theta: Complex, x: Complex) -> Complex:
    """Linear in log N, log X and their product; theta is (d, a, b, c)."""
    return np.asarray(theta[:, 0] - theta[:, 1] * x[0] - theta[:, 2] * x[1] + theta[:, 3] * x[0] * x[1])


def granularity(theta: Complex, x: Complex) -> Complex:
    """E + (A + G0/G^gamma)/N^alpha + B/D^beta; theta is (log E, log A, alpha, log B, beta, log G0, gamma)."""
    by_size = log_sum(theta[:, 1], theta[:, 5] - theta[:, 6] * x[2]) - theta[:, 2] * x[0]
    return log_sum(theta[:, 0], by_size, theta[:, 3] - theta[:, 4] * x[1])


def mixture(theta: Complex, x: Complex) -> Complex:
    """E + K exp(sum of t r) over shares r; theta is (log E, log K, t of each)."""
    return log_sum(theta[:, 0], theta[:, 1] + sum(theta[:, 2 + i] * np.exp(x[i]) for i in range(len(x))))


def powers_starts(log_inputs: Array, log_loss: Array, random: np.random.Generator, count: int) -> Array:
    """Of (log E, then log A and alpha of each input): each term has a share of the loss at the data's centre."""
    terms = len(log_inputs)
    share = np.log(random.dirichlet(np.ones(terms + 1), count)) + log_loss.mean()
    columns = [share[:, 0]]
    for index, center in enumerate(log_inputs.mean(axis=1)):
        exponent = np.exp(random.uniform(np.log(0.05), 0.0, count))
        columns += [share[:, index + 1] + exponent * center, exponent]
    return np.stack(columns, axis=1)


def granularity_starts(log_inputs: Array, log_loss: Array, random: np.random.Generator, count: int) -> Array:
    """Those of powers of N and D, of which the granularity changes a part."""
    rest = powers_starts(log_inputs[:2], log_loss, random, count)
    part = rest[:, 1] + random.uniform(-3.0, 1.0, count)
    return np.column_stack([rest, part, np.exp(random.uniform(np.log(0.1), 0.5, count))])


def mixture_starts(log_inputs: Array, log_loss: Array, random: np.random.Generator, count: int) -> Array:
    """A floor below the least loss, and domains that help or harm."""
    effects = random.normal(0.0, 1.0, (count, len(log_inputs)))
    share = random.uniform(0.02, 0.7, count)
    scale = log_loss.mean() + np.log(share) - effects @ np.exp(log_inputs).mean(axis=1)
    return np.column_stack([log_loss.min() + np.log1p(-share), scale, effects])


def broken(theta: Complex, x: Complex) -> Complex:
    log_a, first, log_floor, log_break, second, sharpness = (theta[:, index] for index in range(6))
    beyond = log_sum(np.zeros_like(x[0])[None], (x[0] - log_break) / sharpness)
    return log_sum(log_a - first * x[0] - second * sharpness * beyond, log_floor)


def farseer(theta: Complex, x: Complex) -> Complex:
    s, q, shift, b_scale, b, b_shift, a_scale, a, a_shift = (theta[:, index] for index in range(9))
    with np.errstate(all="ignore"):  # a step too far has an infinite loss and is not taken
        floor = s * np.exp(q * x[0]) + shift
        by_data = b_scale * np.exp(b * x[0]) + b_shift - np.exp(a_scale * np.exp(a * x[0]) + a_shift) * x[1]
    return log_sum(floor, by_data)


def farseer_derivatives(theta: Array, x: Array) -> Array:
    """Of log loss by each of the nine."""
    slopes = np.empty((len(theta), 9, x.shape[-1]))
    with np.errstate(all="ignore"):
        powers = [np.exp(theta[:, index] * x[0]) for index in (1, 4, 7)]
        floor, by_data, exponent = (
            theta[:, 3 * index] * power + theta[:, 3 * index + 2] for index, power in enumerate(powers)
        )
        slowly = -np.exp(exponent) * x[1]
        share = 1 / (1 + np.exp(by_data + slowly - floor))
        for index, (power, factor) in enumerate(zip(powers, (share, 1 - share, (1 - share) * slowly), strict=True)):
            slopes[:, 3 * index] = factor * power
            slopes[:, 3 * index + 1] = slopes[:, 3 * index] * theta[:, 3 * index] * x[0]
            slopes[:, 3 * index + 2] = factor
    return slopes


def farseer_starts(log_inputs: Array, log_loss: Array, random: np.random.Generator, count: int) -> Array:
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
