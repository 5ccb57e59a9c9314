"""`python -m xlstm.training RUN_DIRECTORY --attempt N --token TOKEN`: one rank of one attempt, under torchrun."""

from xlstm.training.process import die_with_parent

die_with_parent()

import argparse  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from xlstm.training.process import redirect_output  # noqa: E402


def main() -> int:
    """Train, and leave the verdict in the attempt's folder. Returns 0 where the attempt ended in an orderly way."""
    parser = argparse.ArgumentParser(prog="python -m xlstm.training", description="One rank of one attempt of a run.")
    parser.add_argument("run", type=Path, help="directory of the run, which holds spec.json")
    parser.add_argument("--attempt", type=int, required=True, help="number of the attempt, given with the lease")
    parser.add_argument("--token", default=os.environ.get("SCALING_TOKEN"), help="token of the lease")
    arguments = parser.parse_args()
    if not arguments.token:
        parser.error("--token or SCALING_TOKEN is needed: the lease under which this attempt writes")
    rank = int(os.environ.get("RANK", "0"))
    redirect_output(arguments.run / "attempts" / str(arguments.attempt) / f"rank-{rank}.log")

    from xlstm.training.attempt import run_attempt

    return run_attempt(arguments.run.absolute(), arguments.attempt, arguments.token)


if __name__ == "__main__":
    sys.exit(main())
