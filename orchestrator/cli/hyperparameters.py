"""`scaling fit --hyperparameters`: where the best learning rate or batch lies, and how it moves."""

from orchestrator.cli.options import columns_of, quantity
from orchestrator.cli.terminal import make_console, print_json
from orchestrator.errors import InputError


def fit_hyperparameters(source: str, columns: str | None, axis: str, targets: list[str], as_json: bool) -> None:
    """Print each family's law, its cells, and the best value at each target. InputError for what cannot be read."""
    from orchestrator.display.tables import cells_table
    from orchestrator.workbench.analyses import hyperparameters

    asked = []
    for target in targets:
        size, comma, budget = target.partition(",")
        if not comma:
            raise InputError(f"--at {target}: write N,D, such as 1.3B,26B")
        asked.append((float(quantity("--at", size.strip())), float(quantity("--at", budget.strip()))))
    documents, figure = hyperparameters.fit(source, columns_of(columns), axis, asked)
    if as_json:
        print_json(documents)
        return
    console = make_console()
    for document in documents:
        bounds = ", ".join(f"{name} [{low:.3g}, {high:.3g}]" for name, (low, high) in document["intervals"].items())
        console.print(f"{document['family']}: {document['law']}   {bounds}", highlight=False, soft_wrap=True)
        console.print(cells_table(document))
        for one in document["predictions"]:
            at = f"at N = {one['parameters']:.4g}, D = {one['tokens']:.4g}"
            low, high = one["new_cell_interval"]
            told = f"best {axis} {one['best']:.4g} [{one['low']:.4g}, {one['high']:.4g}]"
            console.print(f"{told}, a new cell's [{low:.4g}, {high:.4g}] {at}", highlight=False, soft_wrap=True)
    console.print(f"drawn in {figure}", highlight=False, soft_wrap=True)
