"""What the table of fitted laws prints."""

from rich.console import Console

from orchestrator.display import tables


def test_an_irreducible_loss_on_its_bound_is_printed_as_a_bound_not_as_a_measured_number() -> None:
    document = {
        "family": "x",
        "parameters": {"E": 0.0, "A": 40.0},
        "intervals": {"E": [0.0, 0.5], "A": [30.0, 50.0]},
        "compute_optimal": {"parameters_exponent": 0.5, "interval": [0.4, 0.6]},
        "certificate": {"converged": True, "agreeing_starts": 1.0, "condition_number": 9.0, "bounds_hit": ["E"]},
        "rows": {"used": 9, "excluded": []},
    }
    console = Console(width=100)
    with console.capture() as printed:
        console.print(tables.fit_table([document]))
    text = printed.get()
    assert "0 (bound) [0, 0.5]" in text
    assert "40 [30, 50]" in text
