"""Corpora and tokenizers become token shards; shards become batches in an order that depends on the seed alone."""

from xlstm.data.corpora.documents import CorpusError
from xlstm.data.preparation import declare, open_prepared, prepare
from xlstm.data.shards import DataDriftError, Manifest, PreparedData

__all__ = ["CorpusError", "DataDriftError", "Manifest", "PreparedData", "declare", "open_prepared", "prepare"]
