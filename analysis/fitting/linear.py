"""Linear systems of which some may be singular, many small ones at once, and the space that columns span."""

import numpy as np

from analysis.laws.additive import Array


def solve(matrices: Array, right: Array) -> Array:
    """Solutions (problems, k) of symmetric systems (problems, k, k); the least-squares one where a system is singular.

    A system that holds what is no number gives a step of zero: its problem stays where it is.
    """
    try:
        return np.asarray(np.linalg.solve(matrices, right[:, :, None])[:, :, 0])
    except np.linalg.LinAlgError:
        sound = np.isfinite(matrices).all(axis=(1, 2)) & np.isfinite(right).all(axis=1)
        found = np.zeros_like(right)
        found[sound] = (np.linalg.pinv(matrices[sound], hermitian=True) @ right[sound][:, :, None])[:, :, 0]
        return found


def orthonormal(columns: Array) -> Array:
    """A basis (rows, rank) of the space of `columns` (rows, k)."""
    lengths = np.linalg.norm(columns, axis=0)
    left, singular, _ = np.linalg.svd(columns / np.where(lengths > 0, lengths, 1.0), full_matrices=False)
    return np.asarray(left[:, singular > 1e-10 * singular[0]])
