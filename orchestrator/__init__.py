"""Plan a sweep, run what is missing on an executor, and show how it stands."""
