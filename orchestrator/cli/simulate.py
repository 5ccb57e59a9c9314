"""`scaling design --simulate`: what would have been bought of runs that are known."""

from pathlib import Path

from orchestrator.cli.options import columns_of
from orchestrator.cli.terminal import make_console, print_json
from orchestrator.errors import InputError


def simulate_design(
    pool: str, targets: Path | None, columns: str | None, shares: str, form: str, seed: int, as_json: bool
) -> None:
    """Print the rounds, and R² of the targets at each share. InputError for what cannot be read."""
    from orchestrator.workbench.analyses.simulate import simulate

    if targets is None:
        raise InputError("--simulate needs --targets, a table of the losses to be predicted")
    try:
        parts = [float(share) for share in shares.split(",") if share.strip()]
    except ValueError:
        raise InputError(f"--shares {shares}: write shares of the pool's cost, such as 0.01,0.05,0.1") from None
    found = simulate(pool, targets, columns_of(columns), parts, form=form, seed=seed)
    if as_json:
        print_json(found)
        return
    console = make_console()
    told = f"{len(found['start'])} cheapest of {found['pool']} runs to begin with, {len(found['rounds'])} bought"
    console.print(f"{', '.join(found['forms'])}: {told}", highlight=False)
    for one in found["rounds"]:
        line = f"row {one['bought']:>6}   {one['share']:7.2%} of the cost   R² {one['r2']:6.3f}"
        console.print(line, highlight=False, style="dim")
    for share, r2 in found["r2"].items():
        console.print(f"R² {r2:.3f} at {float(share):.4g} of the pool's cost", highlight=False)
