"""Figure of a coordinate check: the size of activations after a few steps against the width."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from analysis.report import plots


def coordinates_figure(documents: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each document of `scaling check coordinates --json`, a line for each place."""
    figure: Figure
    figure, axes = plt.subplots(
        1, len(documents), figsize=(4.8 * len(documents), 3.6), squeeze=False, layout="constrained"
    )
    for panel, document in zip(axes[0], documents, strict=True):
        places = document["places"]
        for index, one in enumerate(places):
            color = "black" if one["place"] == "logits" else plots.shade(index, len(places))
            panel.plot(document["widths"], one["sizes"], "o-", color=color, markersize=3, label=one["place"])
        panel.set(
            xscale="log", yscale="log", xlabel="width", ylabel=f"root mean square after {document['steps']} steps"
        )
        panel.set_title(f"{document['family']}: {document['parametrization']}, {document['optimizer']}")
        panel.set_xticks(document["widths"], [str(width) for width in document["widths"]], minor=False)
        panel.set_xticks([], minor=True)
        panel.legend(fontsize=8)
    return figure
