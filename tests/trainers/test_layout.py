"""Weights are published under the names of the model's files: engines skip names that they do not know without a word."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainers import weights

NAMES = ["model.embed_tokens.weight", "model.layers.0.mlp.experts.0.up_proj.weight", "model.layers.0.mlp.experts.1.up_proj.weight"]


def written(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    save_file({name: torch.zeros(2) for name in names}, folder / "model.safetensors")
    return folder


@pytest.fixture
def layout(tmp_path: Path) -> frozenset[str]:
    return weights.layout_of(written(tmp_path / "v0", NAMES))


def test_a_snapshot_of_the_same_names_is_adopted(tmp_path: Path, layout: frozenset[str]) -> None:
    written(tmp_path / "new", [*NAMES, "lm_head.weight"])
    path = weights.adopt(tmp_path, "new", 1, layout)
    assert weights.missing(path, layout) == []


def test_other_names_instead_are_refused_and_removed(tmp_path: Path, layout: frozenset[str]) -> None:
    written(tmp_path / "new", [NAMES[0], "model.layers.0.mlp.experts.gate_up_proj"])
    with pytest.raises(weights.SnapshotError, match=r"experts\.gate_up_proj.*lacks .*experts\.0\.up_proj"):
        weights.adopt(tmp_path, "new", 1, layout)
    assert not (tmp_path / "new").exists()


def test_a_part_only_is_adopted_and_what_is_missing_is_known(tmp_path: Path, layout: frozenset[str]) -> None:
    written(tmp_path / "new", NAMES[:2])
    path = weights.adopt(tmp_path, "new", 1, layout)
    assert weights.missing(path, layout) == NAMES[2:]


def test_a_model_that_does_not_say_compares_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "v0").mkdir()
    assert weights.layout_of(tmp_path / "v0") == frozenset()
    written(tmp_path / "new", ["x"])
    assert weights.missing(weights.adopt(tmp_path, "new", 1, frozenset()), frozenset()) == []


def test_files_of_a_model_may_be_links(tmp_path: Path) -> None:
    blob = written(tmp_path / "blobs", NAMES)
    (tmp_path / "v0").mkdir()
    (tmp_path / "v0" / "model.safetensors").symlink_to(blob / "model.safetensors")
    assert weights.layout_of(tmp_path / "v0") == set(NAMES)
