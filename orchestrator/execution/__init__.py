"""Carries out what was planned, attempt by attempt."""
