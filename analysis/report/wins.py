"""In how many domains one run is better than another: the counts of the xLSTM paper (arXiv 2405.04517, section 4.3)."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Wins:
    """Of a pair of runs: the domains that both have, and those in which the first has the lower loss."""

    run: str
    other: str
    won: int
    domains: int


def count_wins(losses: Mapping[str, Mapping[str, float]]) -> list[Wins]:
    """Every ordered pair of runs, from the losses of each by domain. Where two are equal, nobody wins."""
    return [
        Wins(run, other, sum(mine[name] < theirs[name] for name in mine.keys() & theirs), len(mine.keys() & theirs))
        for run, mine in losses.items()
        for other, theirs in losses.items()
        if run != other
    ]


def markdown(wins: list[Wins]) -> str:
    """A matrix: in how many domains the run of a row is better than that of a column."""
    runs = list(dict.fromkeys(one.run for one in wins))
    cells = {(one.run, one.other): f"{one.won} of {one.domains}" for one in wins}
    lines = [["better than", *runs], ["---", *["---:"] * len(runs)]]
    lines += [[run, *(cells.get((run, other), "") for other in runs)] for run in runs]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
