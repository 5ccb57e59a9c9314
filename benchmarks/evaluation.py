"""Evaluations: lm-eval's tasks here and through `transformers`, a corpus by its passes, and generation by its memory.

    python -m benchmarks.evaluation [--only harness corpus generation] [--data FOLDER] [--items 100] [--rounds 5]
        [--tokens 10_000_000] [--width 128] [--generated 1024] [--json FILE] [--markdown FILE]

One small Llama on CPU, with one thread. `harness`: log-probabilities of LAMBADA's last words and HellaSwag's endings by
our interface and by lm-eval's own HFLM with the same weights, in turn; the ratio of a pair tells, whatever the machine
does beside it (the extra `harness`; `--data` holds lambada/lambada_test.jsonl and
hellaswag/hellaswag_val_full.txt.bz2). `corpus`: the share of an evaluation of about so many tokens that is spent inside
the model. `generation`: what is kept after the first and after all tokens, and seconds of a token late against early.
"""

import argparse
import bz2
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import describe
from xlstm.data import declare, open_prepared, prepare
from xlstm.data.preparation import tokenizer_of
from xlstm.distributed import World
from xlstm.evaluation.inference import bytes_of
from xlstm.evaluation.kinds import check
from xlstm.evaluation.measure import measure
from xlstm.export import transformers as export
from xlstm.models import build
from xlstm.models.configs import LlamaConfig
from xlstm.models.initialization import initialize
from xlstm.models.sizes import config_for
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import CorpusEvaluation
from xlstm.run.spec import Optimizer, Physics, RunSpec
from xlstm.sampling import Sampler

CONTEXT = 512
HF_BATCHES = (1, 16)
FAMILIES = {"xlstm[1:0]": {"num_heads": 2}, "rwkv7": {"head_dim": 64}, "mamba": {}, "llama": {"num_heads": 2}}
PARTS = ("harness", "corpus", "generation")


class Case:
    """A Llama that was drawn and not trained, its tokenizer, and a text."""

    def __init__(self, folder: Path, *, tokens: int, width: int, tokenizer: str = "bytes") -> None:
        self.folder, self.text = folder, folder / "corpus.txt"
        sentences = (f"{n} squared is {n * n}, as anyone may see for himself; " for n in range(tokens // 55))
        self.text.write_text("".join(sentences))
        paths, self.workspace = (str(self.text),), Workspace(folder / "workspace")
        data, vocabulary = declare("text", tokenizer, CONTEXT, paths)
        prepare(data, paths, self.workspace)
        config = LlamaConfig(vocab_size=vocabulary, embedding_dim=width, num_blocks=4, num_heads=4)
        once = {"tokens": CONTEXT, "batch_tokens": CONTEXT, "optimizer": Optimizer(learning_rate=1e-3)}
        physics = Physics(model=config, data=data, **once)
        self.spec, self.model = RunSpec(physics=physics), drawn(config)
        self.world = World(0, 1, torch.device("cpu"))


def drawn(config: Any) -> nn.Module:
    """A model with the initial weights of its family."""
    initialize(model := build(config), seed=0)
    return model.eval()


def seconds(work: Callable[..., Any], *told: Any, **more: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    found = work(*told, **more)
    return time.perf_counter() - began, found


def requests_of(data: Path, items: int) -> dict[str, list[tuple[str, str]]]:
    """Contexts and continuations of the first items of both tasks."""
    with open(data / "lambada" / "lambada_test.jsonl") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(items), strict=False)]
    with bz2.open(data / "hellaswag" / "hellaswag_val_full.txt.bz2", "rt") as file:
        lines = [line.rstrip("\n") for line, _ in zip(file, range(6 * items), strict=False)]
    return {
        "lambada": [(context, " " + word) for context, _, word in (text.rpartition(" ") for text in texts)],
        "hellaswag": [(lines[i], " " + end) for i in range(0, len(lines), 6) for end in lines[i + 2 : i + 6]],
    }


def harness(case: Case, data: Path, items: int, rounds: int) -> list[dict[str, Any]]:
    """Medians of HFLM's seconds over ours, a row for each task and batch of HFLM. ValueError where answers differ."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer

    from xlstm.evaluation.harness import Answers, HarnessModel

    prepared = open_prepared(case.spec.physics.data, case.workspace)
    tokenizer, folder = tokenizer_of(case.spec.physics.data, prepared.path), case.folder / "exported"
    export.save(case.model, case.spec.physics.model, folder, context_length=CONTEXT)
    saved = prepared.path / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(saved.read_bytes())
    end = Tokenizer.from_file(str(saved)).id_to_token(prepared.manifest.end_of_document)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    rows = []
    for task, pairs in requests_of(data, items).items():
        asked = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=0) for pair in pairs]
        for batch in HF_BATCHES:
            theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=batch, max_length=CONTEXT)
            taken = []
            for _ in range(rounds + 1):  # the first warms up
                answers = Answers(case.folder / "none", case.world, lambda: False)
                ours = HarnessModel(case.model, tokenizer, CONTEXT, answers)
                with torch.no_grad():
                    own, said = seconds(ours.loglikelihood, asked, disable_tqdm=True)
                other, expected = seconds(theirs.loglikelihood, asked, disable_tqdm=True)
                taken.append((own, other))
            apart = max(abs(a[0] - b[0]) for a, b in zip(said, expected, strict=True))
            if apart > 1e-3 or [a[1] for a in said] != [b[1] for b in expected]:
                raise ValueError(f"{task}: answers differ by {apart} nats")
            ratios = sorted(other / own for own, other in taken[1:])
            rows.append(
                {"task": task, "requests": len(asked), "batch_of_hf": batch, "seconds": min(own for own, _ in taken)}
                | {
                    "hf_over_ours": statistics.median(ratios),
                    "least": ratios[0],
                    "most": ratios[-1],
                    "nats_apart": apart,
                }
            )
    return rows


def corpus(case: Case) -> list[dict[str, Any]]:
    """The share of an evaluation of the whole text that is spent in the model's forward pass, losses among it."""
    evaluation = CorpusEvaluation(name="whole", corpus="text", revision="1", paths=(str(case.text),), split="all")
    check(evaluation, case.spec, case.workspace)
    marks: list[float] = []  # the beginning and the end of every pass
    case.model.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter()))
    case.model.register_forward_hook(lambda *_: marks.append(time.perf_counter()))
    run = case.workspace.run(case.spec.run_id)
    run.path.mkdir(parents=True, exist_ok=True)  # for what a long text leaves on the way
    taken, found = seconds(measure, case.model, evaluation, case.spec, run, case.world)
    inside = sum(marks[1::2]) - sum(marks[::2])
    return [{"tokens": found.tokens, "seconds": taken, "share_of_forward_pass": inside / taken}]


def generation(generated: int) -> list[dict[str, Any]]:
    """By family: MiB of what is kept after the first token and after all, and seconds of a late over an early token."""
    rows = []
    for family, dimensions in FAMILIES.items():
        model = drawn(config_for(family, {"embedding_dim": 128, "num_blocks": 2} | dimensions, 256))
        sampler, each = Sampler(model, [[0]], generated), generated // 4
        sampler.advance(1)
        first = bytes_of(sampler.state)
        taken = [seconds(sampler.advance, 1)[0] for _ in range(generated - 1)]
        late, early = statistics.median(taken[-each:]), statistics.median(taken[:each])
        kept = {"state_mib_first": first / 2**20, "state_mib_last": bytes_of(sampler.state) / 2**20}
        rows.append({"family": family, "tokens": generated, **kept, "late_over_early": late / early})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    told = [[f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *told]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/evaluation"))
    numbers = {"items": 100, "rounds": 5, "tokens": 10_000_000, "width": 128, "generated": 1024}
    for name, usual in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    for name in ("json", "markdown"):
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": describe("cpu")}
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(tempfile.mkdtemp(dir=name)) for _ in PARTS]
        if "harness" in options.only:
            case = Case(folders[0], tokens=400_000, width=options.width, tokenizer="bpe-1024")
            found["harness"] = harness(case, options.data, options.items, options.rounds)
        if "corpus" in options.only:
            found["corpus"] = corpus(Case(folders[1], tokens=options.tokens, width=options.width))
        if "generation" in options.only:
            found["generation"] = generation(options.generated)
    page = "".join(f"## {part}\n\n{table(found[part])}\n" for part in PARTS if part in found)
    print(page)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(f"# Evaluations\n\n{json.dumps(found['machine'])}\n\n{page}")


if __name__ == "__main__":
    main()
