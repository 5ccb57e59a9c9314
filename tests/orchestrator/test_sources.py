"""What a verb about laws reads is looked up once."""

import math
from functools import partial
from typing import Any

import pytest

from analysis.fitting import families
from analysis.report import figures
from sweeps.sweep import Sweep
from xlstm.run.records import Validation

VERBS = (
    ("fit",),
    ("fit", "--form", "kaplan"),
    ("fit", "--conventions"),
    ("predict", "--parameters", "1M", "--tokens", "1M"),
    ("allocate", "--flops", "1e12"),
    ("design", "--parameters", "1M", "--tokens", "1M", "--budget", "9", "--unit", "device-hours"),
    ("plot",),
    ("report",),
)


def test_a_sweeps_file_is_parsed_once_by_every_verb(
    finish: Any, scaling: Any, write_sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator import Sweep as Planned

    file = write_sweep(("size: [small]", "size: [small, large]"), ("[2560, 5120]", "[2560, 5120, 7680, 10240]"))
    plan = Planned.load(file).plan()
    plan.save()
    for planned in plan.runs:
        row = planned.document()
        loss = 1.5 + 30 / row["parameters"]["total"] ** 0.3 + 40 / row["tokens"] ** 0.3
        measured = {"loss": loss, "perplexity": math.exp(loss), "tokens": 1}
        evaluation = planned.spec.evaluation_fingerprint
        finish(plan.workspace, planned, validation=Validation(**measured, evaluation=evaluation))

    # How much is drawn and resampled is not what is asked here.
    monkeypatch.setattr(families, "fit", partial(families.fit, num_draws=12, num_starts=64))
    monkeypatch.setattr(figures, "FIGURES", {"law": figures.law})
    parsed = []
    load = Sweep.load.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(Sweep, "load", classmethod(lambda *given: parsed.append(given[1]) or load(*given)))
    for verb, *options in VERBS:
        parsed.clear()
        said = scaling(verb, file, *options)
        assert said.code == 0, said.err
        assert parsed == [file], verb
