"""Datasets of the `datasets` library give the shards that the same documents give as files."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sweeps.sweep import Sweep
from xlstm.data import CorpusError, declare, prepare
from xlstm.data.shards import Manifest
from xlstm.run.directory import Workspace

datasets = pytest.importorskip("datasets")

SPLITS = {"train": 60, "validation": 9, "test": 5}


def documents(split: str, form: Callable[[dict[str, str]], Any]) -> list[dict[str, Any]]:
    names = ("RedPajamaC4", "RedPajamaGithub", "RedPajamaBook")
    return [
        {"text": f"{split} {i}: {'né ' * (i % 5)}", "meta": form({"redpajama_set_name": names[i % 3]}), "id": i}
        for i in range(SPLITS[split])
    ]


def contents(manifest: Manifest) -> dict[str, Any]:
    return {
        name: (split.tokens, split.sources, [file.sha256 for file in (*split.shards, split.index)])
        for name, split in manifest.splits.items()
    }


@pytest.mark.parametrize("form", [dict, json.dumps, str], ids=["struct", "json", "repr"])
def test_a_saved_dataset_with_slimpajamas_schema_is_prepared_and_counted_by_source(
    tmp_path: Path, form: Callable[[dict[str, str]], Any]
) -> None:
    made = datasets.DatasetDict({name: datasets.Dataset.from_list(documents(name, form)) for name in SPLITS})
    made.save_to_disk(str(tmp_path / "saved"))
    files = tmp_path / "files"
    files.mkdir()
    for name in SPLITS:
        (files / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents(name, dict)))
    data, vocabulary = declare("hf", "bytes", 8, (str(tmp_path / "saved"),))
    assert vocabulary == 256
    manifest = prepare(data, (str(tmp_path / "saved"),), Workspace(tmp_path / "one"))
    as_files, _ = declare("jsonl", "bytes", 8, (str(files),))
    expected = prepare(as_files, (str(files),), Workspace(tmp_path / "two"))
    assert contents(manifest) == contents(expected)
    assert manifest.splits["train"].sources == {"RedPajamaC4": 20, "RedPajamaGithub": 20, "RedPajamaBook": 20}
    assert data.revision.startswith("sha256:")


def test_a_dataset_without_splits_holds_documents_out_and_a_changed_one_is_another(tmp_path: Path) -> None:
    rows = documents("train", dict)
    revisions = set()
    for name, kept in (("whole", rows), ("copy", rows), ("less", rows[:-1])):
        datasets.Dataset.from_list(kept).save_to_disk(str(tmp_path / name))
        data, _ = declare("hf", "bytes", 8, (str(tmp_path / name),))
        revisions.add(data.revision)
        manifest = prepare(data, (str(tmp_path / name),), Workspace(tmp_path / "workspace"))
        assert sum(split.documents for split in manifest.splits.values()) == len(kept)
        assert set(manifest.splits) == {"train", "validation"}
    assert len(revisions) == 2


def test_a_dataset_without_texts_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"content": "x"}]).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(CorpusError, match="no column `text`; found content"):
        declare("hf", "bytes", 8, (str(tmp_path / "saved"),))


def test_without_a_network_the_message_says_what_to_do(tmp_path: Path) -> None:
    program = "from xlstm.data import declare; declare('hf', 'bytes', 8, ('some-owner/some-dataset',))"
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", program], env=offline, capture_output=True, text=True, check=False)
    message = ended.stderr.strip().splitlines()[-1]
    assert "CorpusError: hf:some-owner/some-dataset: " in message
    assert "give a folder that `save_to_disk` wrote" in message


def test_a_sweep_names_datasets_by_name_and_by_folder(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    for stated, path in (("owner/name", "owner/name"), ("saved", str(tmp_path / "saved"))):
        (tmp_path / "sweep.yaml").write_text(f"name: a\ndata: {{corpus: 'hf:{stated}'}}\n")
        data = Sweep.load(tmp_path / "sweep.yaml").document.value["data"]
        assert data == {"corpus": "hf", "paths": [path]}
