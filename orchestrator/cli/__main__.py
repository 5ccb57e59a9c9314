"""`python -m orchestrator.cli` is `scaling`."""

from orchestrator.cli import main

main()
