"""Ways of one verb that exclude each other: an option that the chosen way does not read is refused, not passed over."""

from collections.abc import Sequence
from dataclasses import dataclass

import typer

from orchestrator.errors import InputError


@dataclass(frozen=True)
class Mode:
    """One way of a verb, chosen by an option; without any the verb goes its usual way."""

    option: str
    own: frozenset[str] = frozenset()
    """Options that mean something in this way alone."""
    common: frozenset[str] = frozenset()
    """Options of the usual way that this one reads as well."""


def check_modes(context: typer.Context, modes: Sequence[Mode]) -> None:
    """InputError where two ways are asked for at once, or an option that the way asked for does not read."""
    given = _given(context)
    chosen = [mode for mode in modes if mode.option in given]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(mode.option for mode in chosen)} exclude each other")
    for mode in modes:
        if mode not in chosen and (strays := [option for option in given if option in mode.own]):
            raise InputError(f"{' and '.join(strays)} only with {mode.option}")
    for mode in chosen:
        allowed = {mode.option, "--json"} | mode.own | mode.common
        if refused := [option for option in given if option not in allowed]:
            raise InputError(f"{mode.option} does not go with {', '.join(refused)}")
        sources = context.params.get("sources") or []
        if len(sources) > 1:
            raise InputError(f"{mode.option} takes one source, and {len(sources)} are given")


def _given(context: typer.Context) -> list[str]:
    """The options that stand on the command line, in the order of the help."""
    typed = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.param_type_name == "option" and source is not None and source.name == "COMMANDLINE":
            typed.append(parameter.opts[0])
    return typed
