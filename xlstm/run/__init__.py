"""What one run is, and what it leaves behind: its specification, its directory and the records in it."""
