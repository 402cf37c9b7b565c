"""A name on the Hugging Face hub means the folder in its cache; what is not there is said with its remedy."""

import json
from pathlib import Path

import pytest

from supervisor.config.load import load
from supervisor.config.machine import hf_cache
from supervisor.errors import ConfigError

FILE = """
[host]
virtual = 1
[[pipeline]]
name = "p1"
[pipeline.engine]
model = "Qwen/Qwen3-0.6B"
gpus = [0]
[pipeline.trainer]
gpus = [0]
entry = "trainers.grpo:main"
"""


def cached(home: Path, *, shards: tuple[str, ...] = ("model.safetensors",), index: tuple[str, ...] = (), commit: str = "c0ffee") -> Path:
    """A model as `hf download` lays it down: links into a folder of blobs."""
    model = home / "hub" / "models--Qwen--Qwen3-0.6B"
    folder = model / "snapshots" / commit
    for part in (folder, model / "refs", model / "blobs"):
        part.mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    for name in ("config.json", *shards):
        (model / "blobs" / name).write_text("{}")
        (folder / name).symlink_to(Path("../../blobs") / name)
    if index:
        weight_map = {f"tensor{number}": name for number, name in enumerate(index)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf"


def file(tmp_path: Path) -> Path:
    path = tmp_path / "conf" / "a.toml"
    path.parent.mkdir()
    path.write_text(FILE)
    return path


def test_a_name_is_the_folder_in_the_cache(tmp_path: Path, home: Path) -> None:
    folder = cached(home)
    assert load(file(tmp_path)).config.pipeline[0].engine.model == str(folder)


def test_a_folder_of_that_name_beside_the_file_goes_before(tmp_path: Path, home: Path) -> None:
    cached(home)
    path = file(tmp_path)
    local = path.parent / "Qwen" / "Qwen3-0.6B"
    local.mkdir(parents=True)
    (local / "config.json").write_text("{}")
    assert load(path).config.pipeline[0].engine.model == str(local)


def test_what_is_not_there_is_said_once_with_the_remedy(tmp_path: Path, home: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(file(tmp_path))
    (mistake,) = error.value.mistakes
    assert mistake.key == "pipeline[0].engine.model"
    assert str(home / "hub") in mistake.problem
    assert "hf download Qwen/Qwen3-0.6B" in mistake.remedy


@pytest.mark.parametrize("shards", [(), ("model-00001-of-00002.safetensors",)])
def test_half_a_download_is_no_model(home: Path, shards: tuple[str, ...]) -> None:
    cached(home, shards=shards, index=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"))
    assert hf_cache.snapshot("Qwen/Qwen3-0.6B", {"HF_HOME": str(home)}) is None


@pytest.mark.parametrize("commit", ["", "../../../etc"])
def test_a_strange_reference_is_no_model(home: Path, commit: str) -> None:
    cached(home)
    (home / "hub" / "models--Qwen--Qwen3-0.6B" / "refs" / "main").write_text(commit)
    assert hf_cache.snapshot("Qwen/Qwen3-0.6B", {"HF_HOME": str(home)}) is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
    ],
)
def test_where_the_cache_is(environ: dict[str, str], expected: str) -> None:
    assert hf_cache.cache(environ) == Path(expected)


@pytest.mark.parametrize("model", ["/models/a", "./a", "../a", "a", "a/b/c", "~/a", "a b/c", ""])
def test_what_is_no_name(model: str) -> None:
    assert not hf_cache.is_name(model)
