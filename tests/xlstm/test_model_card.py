"""What a model card says of names that come from the data is what they are."""

from xlstm.models.configs import LlamaConfig
from xlstm.run.outcome import model_card
from xlstm.run.records import Parameters, Result, Validation
from xlstm.run.spec import Data, Execution, Optimizer, Physics, RunSpec

SOURCES = {"a | b": 2.0, "<script>x</script>": 3.0, "[link](http://x)\nnext": 4.0, "RedPajama_C4": 5.0}


def test_sources_stay_in_their_cells_and_are_no_markup() -> None:
    data = Data(corpus="jsonl", revision="sha256:0", tokenizer="bytes", context_length=8)
    model = LlamaConfig(vocab_size=256, embedding_dim=16, num_blocks=1, num_heads=2)
    optimizer = Optimizer(learning_rate=1e-3)
    spec = RunSpec(physics=Physics(model=model, data=data, tokens=64, batch_tokens=16, optimizer=optimizer))
    validation = Validation.model_construct(
        loss=2.5, perplexity=12.2, bits_per_byte=None, tokens=100, evaluation="e", by_source=SOURCES
    )
    result = Result.model_construct(
        run_id=spec.run_id, family="llama", size="1K",
        parameters=Parameters(total=3, non_embedding=2, non_embedding_with_head=3),
        tokens=64, steps=4, flops={"exact": 1.0, "6nd": 1.0}, data_fingerprint="f", tokenizer="bytes",
        validation=validation, device_hours=0.1, attempts=1, trunk_id=None, quality=[],
    )  # fmt: skip
    told = spec.model_copy(update={"execution": Execution(tokenizer_path="/data/mine/tokenizer.json")})
    assert "| tokenizer | bytes (mine/tokenizer.json) |" in model_card(told, result, None)
    rows = [line for line in model_card(spec, result, None).splitlines() if line.startswith("| loss on")]
    assert rows == [
        r"| loss on a \| b | 2.0000 |",
        r"| loss on \<script\>x\</script\> | 3.0000 |",
        r"| loss on \[link\](http://x) next | 4.0000 |",
        "| loss on RedPajama_C4 | 5.0000 |",
    ]
