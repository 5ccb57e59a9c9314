"""Verbs about what lies in the workspace beside runs: the MLflow store and the data."""

import sys
from typing import Annotated

import typer

from orchestrator.cli.terminal import (
    A_RUN_FAILED,
    BAD_INPUT,
    OverridesArgument,
    SetOption,
    SweepArgument,
    make_console,
    plan_sweep,
    workspace_here,
)
from orchestrator.errors import InputError

app = typer.Typer()
data_app = typer.Typer(help="Corpora and their token shards.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")] = 5000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    open_browser: Annotated[bool, typer.Option("--open", help="Open the charts in a browser.")] = False,
) -> None:
    """Serve the MLflow UI on the workspace; its address is printed once it answers."""
    from orchestrator.display.ui import serve
    from orchestrator.standing.lookup import writable_workspace
    from orchestrator.workbench.sync import sync as ship_all

    workspace = writable_workspace()
    _require_free(host, port)

    def ship() -> None:
        for line in ship_all(workspace):
            print(line, file=sys.stderr)

    code = serve(workspace, host, port, ship, open_browser=open_browser)
    raise typer.Exit(A_RUN_FAILED if code else 0)


@app.command()
def sync() -> None:
    """Make MLflow equal the run directories."""
    from orchestrator.workbench.sync import sync as ship_all

    problems = ship_all(workspace_here(), say=print)
    for line in problems:
        print(line, file=sys.stderr)
    if problems:
        raise typer.Exit(BAD_INPUT)


@data_app.command("prepare")
def data_prepare(
    sweep: SweepArgument,
    overrides: OverridesArgument = None,
    override: SetOption = None,
    on: Annotated[
        str, typer.Option(metavar="local|ray", help="Who tokenizes: this machine, or a Ray cluster's workers.")
    ] = "local",
) -> None:
    """Make the token shards that a sweep trains on. Who makes them changes nothing in them."""
    from orchestrator.execution.submission import prepare_data
    from orchestrator.standing.lookup import writable_workspace

    if on not in ("local", "ray"):
        raise InputError(f"--on {on}: data are prepared on local or ray")
    workspace = writable_workspace()
    specs = [run.spec for run in plan_sweep(sweep, overrides, override).runs]
    prepare_data(workspace, specs, make_console(), "ray" if on == "ray" else "local")


@data_app.command("inspect")
def data_inspect(
    sweep: SweepArgument,
    overrides: OverridesArgument = None,
    samples: Annotated[int, typer.Option(min=1, help="Training sequences to show.")] = 3,
    override: SetOption = None,
) -> None:
    """Show the size of a sweep's data, and sequences as the model sees them."""
    from orchestrator.display.samples import print_samples
    from orchestrator.execution.submission import prepare_data
    from orchestrator.standing.lookup import writable_workspace

    workspace = writable_workspace()
    specs = [run.spec for run in plan_sweep(sweep, overrides, override).runs]
    prepare_data(workspace, specs, make_console())
    print_samples(workspace, specs[0], samples)


def _require_free(host: str, port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"{host}:{port} cannot be listened on: {error.strerror}; choose another: scaling ui --port {port + 1}"
            ) from None
