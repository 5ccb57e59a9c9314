"""`python -m xlstm.training RUN_DIRECTORY --attempt N --token TOKEN`: one rank of one attempt, under torchrun."""

import os

_PARENT = os.getppid()

from xlstm.run.processes import TOKEN_VARIABLE, die_with_parent, redirect_output  # noqa: E402

die_with_parent(_PARENT)  # before torch is there: a killed launcher leaves no orphan in the seconds that takes

import argparse  # noqa: E402
import gc  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from xlstm.run.directory import RunDirectory  # noqa: E402


def main() -> int:
    """Train, and leave the verdict in the attempt's folder. Returns 0 where the attempt ended in an orderly way."""
    parser = argparse.ArgumentParser(prog="python -m xlstm.training", description="One rank of one attempt of a run.")
    parser.add_argument("run", type=Path, help="directory of the run, which holds spec.json")
    parser.add_argument("--attempt", type=int, required=True, help="number of the attempt, given with the lease")
    parser.add_argument("--token", default=os.environ.get(TOKEN_VARIABLE), help="token of the lease")
    arguments = parser.parse_args()
    if not arguments.token:
        parser.error("--token or the environment's SCALING_TOKEN is needed: the lease under which this attempt writes")
    rank = int(os.environ.get("RANK", "0"))
    redirect_output(RunDirectory(arguments.run).rank_log(arguments.attempt, rank))

    gc.disable()  # all that imports make stays: to look for garbage among it takes a quarter of their time
    from xlstm.training.attempt import run_attempt

    gc.freeze()
    gc.enable()
    return run_attempt(arguments.run.absolute(), arguments.attempt, arguments.token)


if __name__ == "__main__":
    sys.exit(main())
