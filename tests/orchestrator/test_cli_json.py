"""What programs read: the same field names in plan, status and fit, and a plan that spends nothing."""

import math
from collections.abc import Callable
from typing import Any

WriteSweep = Callable[..., str]


def test_plan_json_has_the_documented_fields_and_writes_nothing(scaling: Any, write_sweep: WriteSweep) -> None:
    said = scaling("plan", write_sweep(), "--json")
    assert said.code == 0
    plan = said.json
    assert plan["sweep"] == "tiny"
    first, second = plan["runs"]
    assert first.keys() >= {
        *("run_id", "model", "size", "seed", "tokens", "steps", "parameters", "flops"),
        *("memory_gib_per_device", "device_hours", "state", "forks_from"),
    }
    assert first["parameters"].keys() == {"total", "non_embedding", "non_embedding_with_head"}
    assert first["flops"].keys() == {"exact", "6nd"}
    assert (first["steps"], second["steps"]) == (10, 20)
    assert first["flops"]["6nd"] == 6 * first["parameters"]["total"] * first["tokens"]
    assert plan["totals"]["tokens"] == first["tokens"] + second["tokens"]
    assert {run["state"] for run in plan["runs"]} == {"PLANNED"}
    assert not (scaling.workspace / "runs").exists()
    assert not (scaling.workspace / "sweeps").exists()


def test_priorities_come_first_and_then_the_cheap(scaling: Any, write_sweep: WriteSweep) -> None:
    urgent = ("resources: [", "resources: [{when: {size: large, tokens: 5120}, set: {priority: 1}}, ")
    plan = scaling("plan", write_sweep(("size: [small]", "size: [large, small]"), urgent), "--json").json
    order = [(run["size"], run["tokens"]) for run in plan["runs"]]
    assert order == [("large", 5120), ("small", 2560), ("small", 5120), ("large", 2560)]


def test_help_names_every_verb(scaling: Any) -> None:
    said = scaling("--help")
    assert said.code == 0
    for verb in ("plan", "submit", "status", "logs", "ui", "sync", "train", "generate", "fit", "plot", "predict"):
        assert verb in said.out


def test_fit_json_has_the_documented_fields_and_finds_the_law_of_a_table(scaling: Any, tmp_path: Any) -> None:
    rows = ["Model Size,Tokens,loss"]
    for n in (1e6, 4e6, 1.6e7, 6.4e7):
        for d in (1e8, 4e8, 1.6e9):
            rows.append(f"{n},{d},{1.7 + 400 / n**0.34 + 410 / d**0.28}")
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(rows))
    said = scaling("fit", str(table), "--columns", "parameters=Model Size,tokens=Tokens,loss=loss", "--json")
    assert said.code == 0, said.err
    (fit,) = said.json
    assert fit.keys() >= {"law", "objective", "objective_value", "parameters", "intervals", "certificate", "rows"}
    assert fit["compute_optimal"].keys() == {"parameters_exponent", "interval"}
    assert fit["certificate"].keys() >= {"converged", "agreeing_starts", "bounds_hit", "condition_number"}
    assert fit["rows"] == {"used": 12, "excluded": []}
    assert math.isclose(fit["parameters"]["alpha"], 0.34, rel_tol=1e-3)
    assert math.isclose(fit["parameters"]["beta"], 0.28, rel_tol=1e-3)
    predicted = scaling(
        *("predict", str(table), "--parameters", "16M", "--tokens", "400M", "--json"),
        *("--columns", "parameters=Model Size,tokens=Tokens,loss=loss"),
    ).json
    exact = 1.7 + 400 / 1.6e7**0.34 + 410 / 4e8**0.28
    assert math.isclose(predicted[0]["loss"], exact, rel_tol=1e-3)
