"""Measure a trained model: loss, perplexity and bits per byte on fixed data."""
