"""`scaling fit --downstream`: from loss to the error of a task, beside the law."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def show_downstream(found: dict[str, Any], console: "Console") -> None:
    """The link of a family, how its forms foretold the dear runs, and each run's error as its law foretells it."""
    from rich.table import Table

    values = ", ".join(f"{name} {value:.4g}" for name, value in found["parameters"].items())
    console.print(
        f"{found['family']}: {found['error']} = {found['formula']}: {values}", highlight=False, soft_wrap=True
    )
    tried = [f"{name} {missed:.2g}" for name, missed in found["rollouts"].items() if missed is not None]
    said = f"error on the dear fifth: {', '.join(tried)}" if tried else "too few runs to try other forms"
    console.print(said, highlight=False, style="dim")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for column in ("loss", "error", "by the law", "interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for run in found["runs"]:
        low, high = run["interval"]
        numbers = (f"{run['loss']:.4f}", f"{run['error']:.4f}", f"{run['foretold']:.4f}")
        table.add_row(run["run_id"], *numbers, f"{low:.4f} to {high:.4f}")
    console.print(table)
    for warning in found["warnings"]:
        console.print(warning["message"], style="yellow", highlight=False, soft_wrap=True)
