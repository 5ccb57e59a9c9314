"""The coordinate check of a sweep: activations after a few steps against the width, for each of its families."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from orchestrator.errors import InputError
from orchestrator.planning.plan import Plan
from xlstm.models.naming import family_label
from xlstm.run.spec import Physics

FLAT = 1.5
"""Largest ratio of sizes over all widths that counts as flat (arXiv 2203.03466, appendix D.1, shows such plots)."""


def check(plan: Plan, steps: int) -> tuple[list[dict[str, Any]], Path]:
    """A document for each family, parametrization and optimizer of a planned sweep; and the figure that was written.

    Models of all widths have as many blocks as the shallowest. InputError where no family has two widths.
    """
    from analysis.report import coordinate_plots, plots
    from xlstm.training.coordinates import coordinates

    documents = []
    for (family, parametrization, optimizer, rate), widths in _widths(run.spec.physics for run in plan.runs).items():
        depth = min(physics.model.num_blocks for physics in widths.values())
        try:
            sizes = [coordinates(_of_depth(physics, depth), steps) for physics in widths.values()]
        except ValueError as error:
            raise InputError(f"{plan.name}: {error}") from None
        places = []
        for place in sizes[0]:
            found = [one[place] for one in sizes]
            ratio = max(found) / min(found)
            places.append({"place": place, "sizes": found, "ratio": ratio, "flat": ratio <= FLAT})
        document = {
            "family": family,
            "parametrization": parametrization,
            "optimizer": optimizer,
            "learning_rate": rate,
            "steps": steps,
            "widths": list(widths),
            "places": places,
            "flat": all(one["flat"] for one in places),
        }
        documents.append(document)
    if not documents:
        raise InputError(f"{plan.name}: a coordinate check needs a family of two widths at least")
    with plots.style():
        figure = coordinate_plots.coordinates_figure(documents)
        (path,) = plots.save(figure, plan.workspace.fits / f"{plan.name}-coordinates", ("png",))
    return documents, path


def _widths(runs: Iterable[Physics]) -> dict[tuple[str, str, str, float], dict[int, Physics]]:
    """A run of each width, by family, parametrization, optimizer, and of its rates the greatest that most widths have.

    Families of one width are left out.
    """
    found: dict[tuple[str, str, str], dict[float, dict[int, Physics]]] = {}
    for one in runs:
        rates = found.setdefault((family_label(one.model), one.parametrization, one.optimizer.name), {})
        rates.setdefault(one.optimizer.learning_rate, {}).setdefault(one.model.embedding_dim, one)
    best = {kind: max(rates.items(), key=lambda of: (len(of[1]), of[0])) for kind, rates in found.items()}
    return {(*kind, rate): dict(sorted(widths.items())) for kind, (rate, widths) in best.items() if len(widths) > 1}


def _of_depth(physics: Physics, depth: int) -> Physics:
    """The same run with fewer blocks."""
    changes: dict[str, Any] = {"num_blocks": depth}
    if hasattr(physics.model, "slstm_at"):
        changes["slstm_at"] = tuple(index for index in physics.model.slstm_at if index < depth)
    return physics.model_copy(update={"model": dataclasses.replace(physics.model, **changes)})
