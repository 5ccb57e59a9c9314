"""Preparing on Ray Data gives the shards of one machine, bit for bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import patient_with_raylets

from xlstm.data import CorpusError, declare, prepare
from xlstm.data.preparation import data_folder
from xlstm.run.directory import Workspace

pytestmark = [pytest.mark.serial, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    from xlstm.data.distributed import start_ray

    with patient_with_raylets():
        try:
            start_ray(address="local", num_cpus=2, include_dashboard=False)
        except TimeoutError:  # its agents, which import much, have 30 seconds to start
            ray.shutdown()
            start_ray(address="local", num_cpus=2, include_dashboard=False)
    yield ray
    ray.shutdown()


def corpus(folder: Path, files: int, documents: int) -> str:
    """Files of different lengths, with sources, and words that are split over tokens."""
    folder.mkdir()
    for number in range(files):
        rows = [
            {"text": f"{number}.{i}: naïve\n" + "unlikely " * (i % 11), "meta": {"redpajama_set_name": f"R{i % 3}"}}
            for i in range(documents * (number % 4 + 1))
        ]
        (folder / f"{number:03}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def files_of(workspace: Workspace, data: Any) -> dict[str, bytes]:
    folder = data_folder(data, workspace)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "verified.json"}


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe-300"])
@pytest.mark.parametrize(("files", "documents"), [(13, 40), (2, 1)], ids=["many", "none held out by chance"])
def test_shards_made_on_ray_are_those_of_one_machine(
    cluster: Any, tmp_path: Path, tokenizer: str, files: int, documents: int
) -> None:
    paths = (corpus(tmp_path / "corpus", files, documents),)
    data, _ = declare("jsonl", tokenizer, 16, paths)
    here, there = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    prepare(data, paths, here)
    prepare(data, paths, there, engine="ray")
    assert set(files_of(here, data)) >= {"manifest.json", "train-00000.tokens", "validation-00000.tokens"}
    assert files_of(there, data) == files_of(here, data)


def test_a_mixture_made_on_ray_is_that_of_one_machine(cluster: Any, tmp_path: Path) -> None:
    paths = (corpus(tmp_path / "many", 3, 40), corpus(tmp_path / "few", 2, 9))
    portions = [{"corpus": "jsonl", "weight": 2.0}, {"corpus": "jsonl", "weight": 1.0}]
    data, _ = declare("mixture", "bytes", 16, paths, portions=portions)
    here, there = Workspace(tmp_path / "here"), Workspace(tmp_path / "there")
    assert list(prepare(data, paths, here).splits["train"].sources) == ["many", "few"]
    prepare(data, paths, there, engine="ray")
    assert files_of(there, data) == files_of(here, data)


def test_what_a_worker_cannot_read_is_named(cluster: Any, tmp_path: Path) -> None:
    from xlstm.data.corpora import open_corpus
    from xlstm.data.distributed import encoded_on_ray
    from xlstm.data.tokenizers import ByteTokenizer

    folder = corpus(tmp_path / "corpus", 3, 4)
    (tmp_path / "corpus" / "001.jsonl").write_text("{}\n")
    with pytest.raises(CorpusError, match=r"001\.jsonl:1: no `text` of type string"):
        list(encoded_on_ray(open_corpus("jsonl", (folder,)), "bytes", ByteTokenizer()))
