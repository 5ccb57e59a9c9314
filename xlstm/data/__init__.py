"""Corpora and tokenizers become token shards; shards become batches in an order that depends on the seed alone."""
