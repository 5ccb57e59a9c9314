"""Runs on Slurm, submitted through submitit: one task per node runs the supervisor, and nothing of ours stays alive."""
