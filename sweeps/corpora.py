"""The corpus that a point names, as runs take it: each is looked at once. Imports without torch."""

from functools import lru_cache
from typing import Any, Literal

from xlstm.data import declare
from xlstm.data.tokenizers import canonical_name, model_vocabulary, stated_vocabulary
from xlstm.run.spec import Data, IdType


@lru_cache(maxsize=256)
def declared(
    corpus: str,
    tokenizer: str,
    context_length: int,
    paths: tuple[str, ...],
    revision: str | None,
    documents: Literal["continue", "reset"],
    text_key: str,
    end_of_text: str | None,
    id_type: IdType | None,
    mixture: tuple[tuple[tuple[str, Any], ...], ...],
) -> tuple[Data, int]:
    """The data ring and the vocabulary. A stated revision is taken at its word, so no file is needed to plan."""
    if revision is not None:
        vocabulary = stated_vocabulary(canonical_name(tokenizer))
        if vocabulary is None:
            raise ValueError(f"tokenizer {tokenizer}: its vocabulary comes from the corpus: state no revision")
        if end_of_text is not None:
            raise ValueError(f"tokenizer {tokenizer}: its end of text is known; end_of_text is for a tokenizer.json")
        data = Data(
            corpus=corpus,
            revision=revision,
            tokenizer=canonical_name(tokenizer),
            context_length=context_length,
            documents=documents,
            text_key=text_key,
            id_type=id_type,
        )
        return data, model_vocabulary(vocabulary.size)
    return declare(
        corpus,
        tokenizer,
        context_length,
        paths,
        documents,
        text_key=text_key,
        end_of_text=end_of_text,
        id_type=id_type,
        portions=[dict(source) for source in mixture],
    )
