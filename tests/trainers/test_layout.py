"""A snapshot has the names, shapes and types of the model's tensors, or it is refused before any engine sees it."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainers import weights
from trainers.weights import Layout, SnapshotError, TensorType

NAMES = ["model.embed_tokens.weight", "model.layers.0.mlp.experts.0.up_proj.weight", "model.layers.0.mlp.experts.1.up_proj.weight"]


def written(folder: Path, names: list[str], embedding: torch.Tensor | None = None) -> Path:
    """A folder with these tensors of two zeros each, but for the `embedding`."""
    folder.mkdir()
    other = {} if embedding is None else {NAMES[0]: embedding}
    save_file({name: torch.zeros(2) for name in names} | other, folder / "model.safetensors")
    return folder


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return weights.layout_of(written(tmp_path / "v0", NAMES))


def refused(tmp_path: Path, layout: Layout, code: str, words: str) -> None:
    with pytest.raises(SnapshotError, match=words) as caught:
        weights.adopt(tmp_path, "new", 1, layout)
    assert caught.value.code == code
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "v1").exists()


def test_a_layout_says_type_and_shape(tmp_path: Path, layout: Layout) -> None:
    assert layout == Layout({name: TensorType("F32", (2,)) for name in NAMES})
    (tmp_path / "v0" / "config.json").write_text('{"tie_word_embeddings": true}')
    assert weights.layout_of(tmp_path / "v0").tied
    (tmp_path / "v0" / "config.json").write_text('{"text_config": {"tie_word_embeddings": true}}')
    assert weights.layout_of(tmp_path / "v0").tied


def test_a_snapshot_of_the_same_names_is_adopted(tmp_path: Path, layout: Layout) -> None:
    written(tmp_path / "new", [*NAMES, "lm_head.weight", "v_head.weight"])
    assert weights.adopt(tmp_path, "new", 1, layout) == tmp_path / "v1"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float32])
def test_the_width_of_a_float_may_differ(tmp_path: Path, layout: Layout, dtype: torch.dtype) -> None:
    written(tmp_path / "new", NAMES, embedding=torch.zeros(2, dtype=dtype))
    weights.adopt(tmp_path, "new", 1, layout)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.float8_e4m3fn, torch.bool])
def test_another_kind_of_number_is_refused(tmp_path: Path, layout: Layout, dtype: torch.dtype) -> None:
    written(tmp_path / "new", NAMES, embedding=torch.zeros(2, dtype=dtype))
    refused(
        tmp_path, layout, "does_not_fit", r"1 of 3 tensors .*'model\.embed_tokens\.weight' is \w+ \[2\], and F32 \[2\] in the model's files"
    )


def test_floats_in_place_of_a_quantised_model_are_refused(tmp_path: Path) -> None:
    layout = weights.layout_of(written(tmp_path / "v0", NAMES, embedding=torch.zeros(2, dtype=torch.float8_e4m3fn)))
    written(tmp_path / "new", NAMES, embedding=torch.zeros(2, dtype=torch.bfloat16))
    refused(tmp_path, layout, "does_not_fit", r"is BF16 \[2\], and F8_E4M3 \[2\]")


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1,), (), (1, 2)])
def test_another_shape_is_refused(tmp_path: Path, layout: Layout, shape: tuple[int, ...]) -> None:
    written(tmp_path / "new", NAMES, embedding=torch.zeros(shape))
    refused(tmp_path, layout, "does_not_fit", r"'model\.embed_tokens\.weight' is F32 \[.*\], and F32 \[2\] in the model's files")


def test_other_names_instead_are_refused_and_removed(tmp_path: Path, layout: Layout) -> None:
    written(tmp_path / "new", [NAMES[0], "model.layers.0.mlp.experts.gate_up_proj"])
    refused(tmp_path, layout, "does_not_fit", r"in another way than the model.*experts\.gate_up_proj.*lacks .*experts\.0\.up_proj")


def test_the_first_few_are_named_and_the_others_counted(tmp_path: Path) -> None:
    layout = weights.layout_of(written(tmp_path / "v0", [f"a{index}" for index in range(9)]))
    written(tmp_path / "new", ["a7", "a8"])
    refused(tmp_path, layout, "incomplete", r"lacks 7 of the model's 9 tensors: 'a0', 'a1', 'a2' and 4 more; .*partial=True")


def test_a_part_only_is_refused(tmp_path: Path, layout: Layout) -> None:
    written(tmp_path / "new", NAMES[:2])
    refused(tmp_path, layout, "incomplete", r"lacks 1 of the model's 3 tensors: 'model\.layers\.0\.mlp\.experts\.1\.up_proj\.weight';")


def test_a_tied_output_layer_may_be_left_out_and_any_other_may_not(tmp_path: Path) -> None:
    folder = written(tmp_path / "v0", [*NAMES, "lm_head.weight"])
    written(tmp_path / "new", NAMES)
    refused(tmp_path, weights.layout_of(folder), "incomplete", "lm_head")
    (folder / "config.json").write_text('{"tie_word_embeddings": true}')
    written(tmp_path / "new", NAMES)
    weights.adopt(tmp_path, "new", 1, weights.layout_of(folder))


def test_what_engines_compute_may_be_left_out(tmp_path: Path) -> None:
    layout = weights.layout_of(written(tmp_path / "v0", [*NAMES, "model.layers.0.self_attn.rotary_emb.inv_freq", "h.0.attn.masked_bias"]))
    written(tmp_path / "new", NAMES)
    weights.adopt(tmp_path, "new", 1, layout)


def test_a_model_that_does_not_say_compares_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "v0").mkdir()
    assert weights.layout_of(tmp_path / "v0") == weights.UNKNOWN
    written(tmp_path / "new", ["x"])
    weights.adopt(tmp_path, "new", 1, weights.UNKNOWN)


def test_files_of_a_model_may_be_links(tmp_path: Path) -> None:
    blob = written(tmp_path / "blobs", NAMES)
    (tmp_path / "v0").mkdir()
    (tmp_path / "v0" / "model.safetensors").symlink_to(blob / "model.safetensors")
    assert weights.layout_of(tmp_path / "v0").tensors.keys() == set(NAMES)


def sharded(folder: Path, shards: dict[str, list[str]], **index: str) -> Path:
    """A folder with these files, and an index of them; `index` changes entries of that."""
    folder.mkdir()
    for file, names in shards.items():
        save_file({name: torch.zeros(2) for name in names}, folder / file)
    table = {name: file for file, names in shards.items() for name in names}
    (folder / weights.INDEX).write_text(json.dumps({"weight_map": table | index}))
    return folder


SHARDS = {"model-00001-of-00002.safetensors": NAMES[:2], "model-00002-of-00002.safetensors": NAMES[2:]}


def test_the_files_of_an_index_count_and_no_others(tmp_path: Path, layout: Layout) -> None:
    """Some models have their tensors a second time, under other names, in a file besides."""
    folder = sharded(tmp_path / "again", SHARDS)
    save_file({"layers.0.wq": torch.zeros(2)}, folder / "consolidated.safetensors")
    assert weights.layout_of(folder) == layout
    os.rename(folder, tmp_path / "new")
    weights.adopt(tmp_path, "new", 1, layout)


def test_what_only_a_file_beside_the_index_has_is_missing(tmp_path: Path, layout: Layout) -> None:
    save_file({NAMES[2]: torch.zeros(2)}, sharded(tmp_path / "new", {"a.safetensors": NAMES[:2]}) / "b.safetensors")
    refused(tmp_path, layout, "incomplete", "lacks 1")


@pytest.mark.parametrize("file", ["model-00009.safetensors", "../v0/model.safetensors", "model-00001-of-00002.safetensors"])
def test_an_index_that_lies_is_refused(tmp_path: Path, layout: Layout, file: str) -> None:
    sharded(tmp_path / "new", SHARDS, **{NAMES[2]: file})
    refused(tmp_path, layout, "bad_snapshot", "index")


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 100_000, '{"weight_map": {"a": "\\ud800"}}']
)
def test_an_index_that_is_none_is_refused(tmp_path: Path, layout: Layout, text: str) -> None:
    (written(tmp_path / "new", NAMES) / weights.INDEX).write_text(text)
    refused(tmp_path, layout, "bad_snapshot", "index")


def test_a_tensor_in_two_files_is_refused(tmp_path: Path, layout: Layout) -> None:
    sharded(tmp_path / "new", {**SHARDS, "c.safetensors": [NAMES[0]]}, **{NAMES[0]: "c.safetensors"})
    refused(tmp_path, layout, "bad_snapshot", "twice")


def test_several_files_without_an_index_are_refused(tmp_path: Path, layout: Layout) -> None:
    os.unlink(sharded(tmp_path / "new", SHARDS) / weights.INDEX)
    refused(tmp_path, layout, "bad_snapshot", "index")
