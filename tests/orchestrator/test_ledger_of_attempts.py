"""What an attempt leaves in the ledger before it has said from where it goes on."""

import time
from typing import Any

from orchestrator import Sweep
from orchestrator.standing.ledger import account
from xlstm.run.records import Launch, State, Verdict, write_json

STEP_TOKENS = 256


def test_what_an_attempt_takes_over_is_not_wasted_while_it_loads(write_sweep: Any) -> None:
    """Cancelled at step 5 and retried: the second attempt loads, is killed, and the third goes on from step 4."""
    plan = Sweep.load(write_sweep()).plan()
    planned = plan.runs[0]
    row, run = planned.document(), plan.workspace.run(planned.run_id)
    assert row["batch_tokens"] == STEP_TOKENS
    run.create(planned.spec)

    def launch(number: int) -> None:
        lease = run.acquire(f"t{number}")
        identity = {"run_id": run.run_id, "attempt": number, "token": f"t{number}", "executor": "local"}
        made = Launch(**identity, execution=planned.spec.execution, host="", rendezvous="", started=time.time())
        write_json(run.attempt(number) / "launch.json", made.model_dump(mode="json"))
        lease.release(State.CANCELLED)

    def lost() -> tuple[int, int]:
        ledger = account(run, row)
        return ledger.spent.tokens // STEP_TOKENS, ledger.wasted.tokens // STEP_TOKENS

    launch(1)
    run.append_metrics({"step": 5, "time": time.time(), "attempt": 1, "train/loss": 3.0})
    write_json(run.attempt(1) / "exit.json", Verdict(state=State.CANCELLED, step=5).model_dump(mode="json"))
    assert lost() == (5, 0)
    launch(2)
    assert lost() == (5, 0)
    launch(3)
    assert lost() == (5, 0)
    run.append_metrics({"event": "resume", "attempt": 3, "step": 4})
    assert lost() == (5, 1)
    run.append_metrics({"step": 9, "time": time.time(), "attempt": 3, "train/loss": 2.0})
    assert lost() == (10, 1)
