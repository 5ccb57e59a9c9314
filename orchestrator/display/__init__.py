"""How sweeps, runs and progress are shown to people: tables, live displays, logs, and the MLflow server."""
