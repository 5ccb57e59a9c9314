"""What one run is: its specification, models, data, training, evaluation and records."""
