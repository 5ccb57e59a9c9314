"""The same preparation on Ray Data, for corpora that one machine would read and tokenize too slowly.

Files are read and tokenized by the workers of the cluster, a file at a time; their tokens come back in the order of the
files and are written here, so that the shards are bit for bit those of a preparation on one machine. The files must lie
where every worker can read them. Imports Ray Data when it is called.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xlstm.data.corpora import Corpus
from xlstm.data.corpora.documents import CorpusError
from xlstm.data.encoding import Encoded, batches, encode
from xlstm.data.tokenizers import Tokenizer, Vocabulary, load_tokenizer, token_dtype

_FILES_AHEAD = 4
"""Blocks of files per core of the cluster, so that files of different lengths keep all cores busy."""


def encoded_on_ray(
    corpus: Corpus, name: str, tokenizer: Tokenizer, end_of_text: str | None = None
) -> Iterator[Encoded]:
    """Every document of a corpus with the split its file or key states and its token ids, in order.

    `end_of_text` is the one that the tokenizer was made with.
    Uses the cluster this process is connected to, else the one that RAY_ADDRESS names, else starts one here.
    CorpusError where a worker cannot read a file, or Ray is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise CorpusError("preparing on Ray needs Ray Data: pip install 'ray[default,data]'") from None
    if not ray.is_initialized():
        start_ray()
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    with ray.data.DataContext.current(context):  # left before anything is yielded: plans keep a copy of it
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        blocks = min(len(corpus.files), _FILES_AHEAD * cores)
        files = ray.data.from_items(
            [{"file": number} for number in range(len(corpus.files))], override_num_blocks=blocks
        )
        documents = files.flat_map(_Worker(corpus, name, tokenizer.save(), tokenizer.vocabulary, end_of_text))
    dtype = token_dtype(tokenizer.vocabulary)
    try:
        for row in documents.iter_rows():
            tokens = np.frombuffer(row["tokens"], dtype=dtype)
            yield Encoded(row["split"], tokens, row["text_bytes"], row["source"])
    except ray.exceptions.RayError as error:
        raise CorpusError(f"a worker of Ray could not prepare its file: {_cause(error)}") from error


def start_ray(**options: Any) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start one here; its workers find this package."""
    import ray

    path = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ray.init(log_to_driver=False, logging_level="warning", runtime_env={"env_vars": path}, **options)


@dataclass(frozen=True)
class _Worker:
    """Reads and tokenizes one file of the corpus, in a process of the cluster."""

    corpus: Corpus
    name: str
    saved: str | None
    vocabulary: int
    end_of_text: str | None

    def __call__(self, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        file = self.corpus.files[int(row["file"])]
        tokenizer = _tokenizer(self.name, self.saved, self.end_of_text)
        known = Vocabulary(tokenizer.vocabulary, tokenizer.end_of_document)
        dtype = token_dtype(self.vocabulary)
        documents = ((self.corpus.split_of(file, d), d) for d in self.corpus.documents(file, known))
        for batch in batches(documents):
            for one in encode(batch, tokenizer):
                tokens = one.tokens.astype(dtype, copy=False).tobytes()
                yield {"split": one.split, "tokens": tokens, "text_bytes": one.text_bytes, "source": one.source}


_tokenizer = functools.lru_cache(maxsize=2)(load_tokenizer)


def _cause(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no message")
