"""How the experiment of a sweep opens in MLflow: on its runs, validation perplexity against tokens first and large."""

import json
from typing import Any

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Says that an experiment holds trainings, not traces of language models."""

_VIEW = "scaling"


def _chart(metric: str, title: str, section: str, **axes: str) -> dict[str, Any]:
    """A line chart of a metric against tokens, with every key that the UI's own charts have."""
    chart = {
        "type": "LINE",
        "uuid": f"scaling-{metric}",
        "metricSectionId": section,
        "isGenerated": True,
        "deleted": False,
        "runsCountToCompare": 100,
        "metricKey": metric,
        "displayName": title,
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": "progress/tokens",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
    }
    return chart | axes


def _section(identity: str, name: str, columns: int, height: int) -> dict[str, Any]:
    shape = {"columns": columns, "cardHeight": height}
    return {"uuid": identity, "name": name, "display": True, "isReordered": True, "isGenerated": True, **shape}


_CHARTS = {
    "orderByKey": "metrics.`validation/perplexity`",  # runs sorted by a metric are not nested under their parent
    "orderByAsc": True,
    "runsHiddenMode": "SHOW_ALL",
    "isAccordionReordered": True,  # sections stay in this order; those that the UI adds come after them
    "globalLineChartConfig": {"xAxisKey": "metric", "selectedXAxisMetricKey": "progress/tokens", "lineSmoothness": 0},
    "selectedColumns": [
        *(f"params.`{name}`" for name in ("family", "size", "tokens", "learning_rate", "seed")),
        *(f"metrics.`{name}`" for name in ("validation/perplexity", "validation/loss", "train/loss")),
        *("attributes.`Duration`", "attributes.`Dataset`"),
    ],
    "compareRunSections": [
        _section("scaling-validation", "validation", 1, 520),
        _section("scaling-train", "train", 2, 360),
    ],
    "compareRunCharts": [
        _chart("validation/perplexity", "validation perplexity against tokens", "scaling-validation"),
        _chart("validation/loss", "validation loss", "scaling-validation"),
        _chart("train/loss", "training loss", "scaling-train"),
    ],
}
"""A view of the experiment as MLflow's UI saves one that is shared: every run, all metrics against tokens, validation
perplexity first and large; the UI adds the sections that are not named here."""

TAGS = MODEL_TRAINING | {f"mlflow.sharedViewState.{_VIEW}": json.dumps(_CHARTS)}


def charts_link(experiment: str) -> str:
    """The part of a URL that opens an experiment's charts: all runs, validation perplexity against tokens.

    `workflowType` has the UI show runs; without it an experiment opens on traces of language models.
    """
    chosen = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={_VIEW}"
    return f"/#/experiments/{experiment}/runs?{chosen}"
