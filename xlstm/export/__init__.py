"""Weights of our models in the formats of other packages, in and out."""
