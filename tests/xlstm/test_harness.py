"""lm-eval's tasks on our models, beside lm-eval's own way with the same weights through `transformers`."""

import bz2
import copy
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace as Instance
from typing import Any, ClassVar

import pytest
import torch
from tokenizers import Tokenizer

from xlstm.data import declare, open_prepared, prepare
from xlstm.data.preparation import tokenizer_of
from xlstm.distributed import World
from xlstm.evaluation.kinds import check
from xlstm.evaluation.measure import measure
from xlstm.models import build
from xlstm.models.configs import LlamaConfig
from xlstm.run.directory import Workspace
from xlstm.run.evaluations import Harness
from xlstm.run.spec import Optimizer, Physics, RunSpec

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install '.[harness]'")
pytestmark = pytest.mark.slow
CONTEXT = 320
ITEMS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSpec, Workspace, torch.nn.Module]:
    """A Llama that was drawn and not trained: it decides as little as can be, so that rounding would show."""
    folder = tmp_path_factory.mktemp("harness")
    corpus = folder / "text.txt"
    corpus.write_text(
        "\n".join(f"The {i % 17}th answer to question {i} is that {i * i % 97} is right." for i in range(900))
    )
    data, vocabulary = declare("text", "bpe-400", CONTEXT, (str(corpus),))
    workspace = Workspace(folder / "workspace")
    prepare(data, (str(corpus),), workspace)
    model = LlamaConfig(vocab_size=vocabulary, embedding_dim=32, num_blocks=2, num_heads=2)
    physics = Physics(
        model=model, data=data, tokens=CONTEXT, batch_tokens=CONTEXT, optimizer=Optimizer(learning_rate=1e-3)
    )
    spec = RunSpec(physics=physics)
    torch.manual_seed(3)
    built = build(model)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return spec, workspace, built.eval()


def offline_tasks(folder: Path, find: Callable[[str], Path]) -> list[str]:
    """LAMBADA, HellaSwag, ARC, PIQA and WinoGrande from files, as docs/evaluations.md describes."""
    rows: dict[str, list[dict[str, Any]]] = {}
    with open(find("evaluation/lambada/lambada_test.jsonl")) as file:
        rows["lambada"] = [json.loads(line) for line, _ in zip(file, range(ITEMS), strict=False)]
    with bz2.open(find("evaluation/hellaswag/hellaswag_val_full.txt.bz2"), "rt") as file:
        lines = [line.rstrip("\n") for line, _ in zip(file, range(6 * ITEMS), strict=False)]
    rows["hellaswag"] = [
        {"query": lines[i], "gold": int(lines[i + 1]), "choices": lines[i + 2 : i + 6]} for i in range(0, len(lines), 6)
    ]
    for name in ("arc_easy", "arc_challenge", "piqa", "winogrande"):
        with open(find(f"evaluation/llmfoundry/{name}.jsonl")) as file:
            rows[name] = [json.loads(line) for line, _ in zip(file, range(ITEMS), strict=False)]
    rows["text"] = [{"text": row["text"]} for row in rows["lambada"]]
    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    others = {
        "lambada": {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
            "doc_to_target": "{{' '+text.split(' ')[-1]}}",
            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity"}, {"metric": "acc"}],
        },
        "winogrande": choice
        | {"doc_to_text": "gold", "doc_to_target": "continuation", "doc_to_choice": "context_options"},
        "text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    }
    folder.mkdir()
    for name, items in rows.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
        task = {
            "task": f"{name}_offline",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}},
            "test_split": "test",
            **others.get(name, choice),
        }
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return [f"{name}_offline" for name in rows]


def test_every_number_is_that_of_lm_eval_with_the_same_weights_through_transformers(
    run: tuple[RunSpec, Workspace, torch.nn.Module], tmp_path: Path, reference_data: Callable[[str], Path]
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from xlstm.export import transformers as export

    spec, workspace, model = run
    tasks = offline_tasks(tmp_path / "tasks", reference_data)
    evaluation = Harness(name="tasks", tasks=tuple(tasks), paths=(str(tmp_path / "tasks"),))
    assert check(evaluation, spec, workspace) == []
    world = World.init(spec.execution)
    found = measure(model, evaluation, spec, workspace.run(spec.run_id), world)
    world.destroy()

    folder = tmp_path / "exported"
    export.save(model, spec.physics.model, folder, context_length=CONTEXT)
    data = open_prepared(spec.physics.data, workspace)
    (folder / "tokenizer.json").write_bytes((data.path / "tokenizer.json").read_bytes())
    tokenizer = Tokenizer.from_file(str(data.path / "tokenizer.json"))
    end = tokenizer.id_to_token(data.manifest.end_of_document)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8, max_length=CONTEXT)
    expected = lm_eval.simple_evaluate(
        model=theirs,
        tasks=tasks,
        bootstrap_iters=0,
        task_manager=TaskManager(include_path=[str(tmp_path / "tasks")]),
    )
    assert expected is not None
    rows = {row["task"]: row for row in found.tables["task"]}
    assert set(rows) == set(tasks)
    for task in tasks:
        numbers = {
            name.removesuffix(",none"): value
            for name, value in expected["results"][task].items()
            if isinstance(value, int | float) and "stderr" not in name and not name.startswith("sample_")
        }
        assert numbers
        for name, value in numbers.items():
            exactly = name in ("acc", "acc_norm")
            assert rows[task][name] == (value if exactly else pytest.approx(value, rel=1e-4)), (task, name)
        assert rows[task]["items"] == ITEMS
    assert found.measures["lambada_offline/perplexity"] == rows["lambada_offline"]["perplexity"]


class Lockstep(World):
    """One of two ranks in a thread: it meets the other where values are gathered."""

    meeting = threading.Barrier(2, timeout=60)
    values: ClassVar[dict[int, Any]] = {}

    def gather(self, value: Any) -> list[Any]:
        self.values[self.rank] = value
        self.meeting.wait()
        found = copy.deepcopy([self.values[0], self.values[1]])
        self.meeting.wait()
        return found


def test_ranks_that_share_a_model_generate_the_same_continuations_and_call_it_equally_often(
    run: tuple[RunSpec, Workspace, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks of a sharded model wait for each other in each pass: one more on one of them would never end."""
    from xlstm.evaluation import harness

    spec, workspace, model = run
    tokenizer = tokenizer_of(spec.physics.data, open_prepared(spec.physics.data, workspace).path)
    words = ["The 3th answer", "to question 4", "is that"]
    requests = [Instance(args=(word, {"until": ["."], "max_gen_toks": 2 + len(word)})) for word in words]
    calls = [0, 0]

    def generated(rank: int, size: int) -> list[str]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            calls[rank] += 1
            return original(*args, **kwargs)

        own = copy.copy(model)
        original, own.forward = model.forward, counted  # type: ignore[method-assign]
        world = (Lockstep if size == 2 else World)(rank, size, rank, torch.device("cpu"))
        answers = harness.Answers(tmp_path / f"{size}.json", world, lambda: False)
        with torch.no_grad():
            return harness.HarnessModel(own, tokenizer, CONTEXT, answers).generate_until(requests)

    alone = generated(0, 1)
    monkeypatch.setattr(harness, "FSDPModule", torch.nn.Module)  # as if every module were sharded
    calls[0] = 0
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda rank: generated(rank, 2), range(2)))
    assert together == [alone, alone]
    assert calls[0] == calls[1] > 0


def test_a_task_that_lm_eval_does_not_know_is_named(run: tuple[RunSpec, Workspace, torch.nn.Module]) -> None:
    spec, workspace, _ = run
    with pytest.raises(ValueError, match="lm-eval knows no task `hellaswagg`; did you mean `hellaswag`"):
        check(Harness(name="x", tasks=("hellaswagg",)), spec, workspace)
