"""Sweeps that choose their own next run."""
