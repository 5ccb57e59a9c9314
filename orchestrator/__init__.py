"""From plans to finished runs: planner, controller, executors, status, command line, and `Sweep` for Python."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.workbench.api import Plan, Sweep

__all__ = ["Plan", "Sweep"]


def __getattr__(name: str) -> Any:
    # Read when first asked for: the command line and the supervisors import this package and start at once.
    if name in __all__:
        from orchestrator.workbench import api

        return getattr(api, name)
    if name == "__version__":
        from importlib import metadata

        return metadata.version("scaling-orchestrator")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
