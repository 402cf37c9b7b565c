"""A configuration file is read with all its mistakes at once, and nothing but ConfigError ever comes out of it."""

import contextlib
import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.config.load import load
from supervisor.config.schema.findings import GpuFact
from supervisor.config.sources import LIMIT
from supervisor.errors import ConfigError, ExitCode, Mistake, SetUpError
from trainers.protocol.ids import GpuId

CHECKOUT = Path(__file__).resolve().parents[3]

GOOD = """\
[host]
virtual = 4

[[pipeline]]
name = "p1"
[pipeline.engine]
model = { make = "trainers.grpo.tiny:make", options = { seed = 1 } }
gpus = [0, 1, 2, 3]
slots = 16
[pipeline.trainer]
gpus = [0, 1]
entry = "trainers.grpo:main"
"""

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def _write(text: str | bytes) -> Path:
        path = tmp_path / "run.toml"
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        return path

    return _write


def mistakes(path: Path) -> dict[str, Mistake]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.exit_code is ExitCode.CONFIGURATION
    return {mistake.key: mistake for mistake in caught.value.mistakes}


def test_a_good_file(write: Write, tmp_path: Path) -> None:
    loaded = load(write(GOOD))
    assert loaded.name == "run"
    assert loaded.config.pipeline[0].engine.gpus == [0, 1, 2, 3]
    assert loaded.config.pipeline[0].trainer.cwd == str(tmp_path), "a trainer runs in the folder of its file"
    assert loaded.source.decode() == GOOD


@pytest.mark.parametrize("name", ["examples/quickstart.toml", "tests/harness/tiny.toml"])
def test_our_own_files_are_sound(name: str) -> None:
    config = load(CHECKOUT / name).config
    assert [pipeline.name for pipeline in config.pipeline] == ["p1", "p2"]
    assert [pipeline.trainer.gpus for pipeline in config.pipeline] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("mode", "owner", "why"), [(0o1777, 0, "every user"), (0o755, 1001, "belongs to"), (0o775, 0, None), (0o700, 0, None)]
)
def test_a_directory_for_runs_that_others_can_change_is_refused(
    write: Write, tmp_path: Path, mode: int, owner: int, why: str | None
) -> None:
    if owner and os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    runs = tmp_path / "shared"
    runs.mkdir()
    runs.chmod(mode)
    if owner:
        os.chown(runs, owner, -1)
    file = write(GOOD.replace("[host]", f"[host]\ndirectory = {str(runs)!r}"))
    if why is None:
        load(file)
        return
    found = mistakes(file)
    assert set(found) == {"host.directory"}
    assert why in found["host.directory"].problem
    assert str(runs) in found["host.directory"].problem
    assert "directory of your own" in found["host.directory"].remedy


def test_all_mistakes_at_once_each_with_its_line(write: Write) -> None:
    found = mistakes(
        write(
            """\
            colour = "red"
            [host]
            virtual = "four"
            shm = "/nowhere"
            [[pipeline]]
            name = "p1"
            [pipeline.engine]
            kind = "sglan"
            model = "/nowhere/model"
            gpu = [0]
            slots = 16
            [pipeline.trainer]
            gpus = [0, 0]
            [[pipeline]]
            name = "p1"
            [pipeline.engine]
            model = "/nowhere/model"
            gpus = [0, 1, 2]
            slots = 6
            [pipeline.trainer]
            gpus = [1]
            command = ["/nowhere/python"]
            steps = 1.5
            """
        )
    )
    lines = {key: mistake.line for key, mistake in found.items()}
    assert lines == {
        "colour": 1,
        "host.virtual": 3,
        "host.shm": 4,
        "pipeline[0].engine.kind": 8,
        "pipeline[0].engine.model": 9,
        "pipeline[0].engine.gpu": 10,
        "pipeline[0].trainer": 12,
        "pipeline[0].trainer.gpus": 13,
        "pipeline[1].name": 15,
        "pipeline[1].engine.model": 17,
        "pipeline[1].engine.slots": 19,
        "pipeline[1].trainer.command": 22,
        "pipeline[1].trainer.steps": 23,
    }
    assert "`gpus`" in found["pipeline[0].engine.gpu"].remedy
    assert 'did you mean "sglang"' in found["pipeline[0].engine.kind"].problem
    assert all(mistake.remedy for mistake in found.values())


CASES = [
    ("virtual = 4", 'virtual = 4\ngpus = "auto"', "host.virtual", "beside"),
    ("virtual = 4", "", "host", "neither"),
    ("virtual = 4", 'gpus = [0, "GPU-1234"]', "host.gpus", "mixes"),
    ("virtual = 4", "virtual = 4\nports = [9000, 8000]", "host.ports", "window"),
    ("virtual = 4", "virtual = 4\nmetrics_port = 20005", "host.metrics_port", "lies among the ports"),
    ("virtual = 4", "virtual = 4\nmetrics_port = 70000", "host.metrics_port", "too large"),
    ("virtual = 4", 'virtual = 4\nresidual = "x"', "host.residual", "unknown"),
    ("gpus = [0, 1, 2, 3]", "gpus = [0, 4]", "pipeline[0].engine.gpus", "GPU 4 is not there"),
    ("gpus = [0, 1, 2, 3]", "gpus = [0, -1]", "pipeline[0].engine.gpus", "GPU -1 is not there"),
    ("gpus = [0, 1, 2, 3]", "gpus = [0, 0]", "pipeline[0].engine.gpus", "twice"),
    ("gpus = [0, 1, 2, 3]", "gpus = []", "pipeline[0].engine.gpus", "empty"),
    ("gpus = [0, 1, 2, 3]", "gpus = [0, true]", "pipeline[0].engine.gpus[1]", "true or false"),
    ("slots = 16", 'slots = 16\nkind = "sglang"\ntp = 3\npython = "/bin/sh"', "pipeline[0].engine.gpus", "do not divide"),
    ("slots = 16", 'slots = 16\nkind = "sglang"', "pipeline[0].engine.python", "missing"),
    ("slots = 16", "slots = 18", "pipeline[0].engine.slots", "multiple of 4"),
    ("slots = 16", "slots = 16\ntp = 2", "pipeline[0].engine.tp", "one GPU"),
    ("slots = 16", "slots = 16\nep = 2", "pipeline[0].engine.ep", "no experts"),
    ("slots = 16", 'slots = 16\nmembers = "per-gpu"', "pipeline[0].engine.members", "one process"),
    ("slots = 16", 'slots = 16\nmembers = "all"', "pipeline[0].engine.members", "one of the choices"),
    ("slots = 16", 'slots = 16\nkind = "sglang"\ntp = 4\nep = 3\npython = "/bin/sh"', "pipeline[0].engine.ep", "does not divide"),
    ("slots = 16", 'slots = 16\npython = "/etc/passwd"', "pipeline[0].engine.python", "not executable"),
    ("slots = 16", 'slots = 16\nenv = { RANK = "1" }', "pipeline[0].engine.env.RANK", "set by the supervisor"),
    ("slots = 16", 'slots = 16\nenv = { "A B" = "1" }', "pipeline[0].engine.env", "no name"),
    ('name = "p1"', 'name = "P 1"', "pipeline[0].name", "form"),
    ('name = "p1"', 'name = "supervisor"', "pipeline[0].name", "reserved"),
    ('name = "p1"', "", "pipeline[0].name", "missing"),
    ("gpus = [0, 1]\n", 'gpus = [0, 1]\ncommand = ["sh"]\n', "pipeline[0].trainer.entry", "beside"),
    ("gpus = [0, 1]\n", "gpus = [0, 1]\nroles = { init = [0] }\n", "pipeline[0].trainer.roles.init", "reserved"),
    ("gpus = [0, 1]\n", "gpus = [0, 1]\nroles = { critc = [0] }\n", "pipeline[0].trainer.roles.critc", "not a role"),
    ("gpus = [0, 1]\n", "gpus = [0, 1]\nlease_limit_s = nan\n", "pipeline[0].trainer.lease_limit_s", "finite"),
    ("gpus = [0, 1]\n", 'gpus = [0, 1]\nentry2 = "x"\n', "pipeline[0].trainer.entry2", "unknown"),
    ("gpus = [0, 1]\n", 'gpus = [0, 1]\ncwd = "/nowhere"\n', "pipeline[0].trainer.cwd", "not a directory"),
    ('entry = "trainers.grpo:main"', 'entry = "trainers.protocol.framing"', "pipeline[0].trainer.entry", "module:function"),
    ('entry = "trainers.grpo:main"', 'entry = "trainers.nothing:main"', "pipeline[0].trainer.entry", "no module"),
    ("trainers.grpo.tiny:make", "nowhere:make", "pipeline[0].engine.model.make", "no module nowhere"),
    ("seed = 1", "seed = [1]", "pipeline[0].engine.model.options.seed", "a list"),
]


@pytest.mark.parametrize(("old", "new", "key", "words"), CASES, ids=[f"{case[2]}-{case[3]}" for case in CASES])
def test_each_rule(write: Write, old: str, new: str, key: str, words: str) -> None:
    found = mistakes(write(GOOD.replace(old, new, 1)))
    assert key in found, found
    assert words in found[key].problem, found[key]


def test_a_window_on_the_ephemeral_ports_is_refused_as_a_run_refuses_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    found = mistakes(write(GOOD.replace("virtual = 4", f"virtual = 4\nports = [{low}, {high}]")))
    assert "outgoing" in found["host.ports"].problem
    monkeypatch.setattr("supervisor.config.machine.port_windows.ephemeral_range", lambda: (10000, 65535))
    assert "[1024, 9999]" in mistakes(write(GOOD))["host.ports"].remedy, "the default window, too"
    monkeypatch.setattr("supervisor.config.machine.port_windows.ephemeral_range", lambda: (1024, 65535))
    load(write(GOOD))  # there is no other place: what is found taken is passed over


def test_a_directory_for_runs_that_is_a_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    found = mistakes(write(GOOD.replace("virtual = 4", 'virtual = 4\ndirectory = "taken/runs"')))
    assert "is a file" in found["host.directory"].problem


@pytest.mark.parametrize(
    ("source", "words", "line"),
    [
        (b"a = \n", "not TOML", 1),
        (b"[host]\nvirtual = 4\nvirtual = 5\n", "not TOML", 3),
        (b"[host]\nx = '\xff'\n", "not UTF-8", 2),
        (b"x = " + b"[" * 50_000, "nested too deeply", None),
        (b"x = " + b"9" * 5_000, "not TOML", None),
        (b"#" * (LIMIT + 1), "more than", None),
    ],
)
def test_what_is_no_toml(write: Write, source: bytes, words: str, line: int | None) -> None:
    (found,) = mistakes(write(source)).values()
    assert words in found.problem
    assert line is None or found.line == line


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe", Path("/dev/zero"), tmp_path / ("x" * 300)):
        assert mistakes(path)


def test_gpus_of_the_inventory(write: Write) -> None:
    path = write(GOOD.replace("virtual = 4", 'gpus = "auto"'))
    one = [GpuFact(GpuId(0), "one", 80 << 30)]
    with pytest.raises(ConfigError, match=r"GPUs 1, 2, 3 are not there.*one GPU: 0"):
        load(path, lambda host: one)
    assert load(path, lambda host: one * 4).gpus == tuple(one * 4)
    assert load(path).gpus == (), "without an inventory the positions of auto cannot be checked"

    def refuse(host: object) -> list[GpuFact]:
        raise SetUpError("no NVIDIA driver")

    with pytest.raises(ConfigError, match="no NVIDIA driver"):
        load(path, refuse)


def test_paths_are_relative_to_the_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    recipe = 'model = { make = "trainers.grpo.tiny:make", options = { seed = 1 } }'
    text = GOOD.replace(recipe, 'model = "./model"').replace("virtual = 4", 'virtual = 4\ndirectory = "out"')
    config = load(write(text)).config
    assert config.pipeline[0].engine.model == str(tmp_path / "model")
    assert config.host.directory == str(tmp_path / "out")


def assert_only_config_error(path: Path) -> None:
    found: tuple[Mistake, ...] = ()
    with contextlib.suppress(ConfigError):
        try:
            load(path)
        except ConfigError as error:
            found = error.mistakes
            raise
    assert all(mistake.remedy and mistake.problem for mistake in found)


SNIPPETS = [
    "[host]",
    "[[pipeline]]",
    "[pipeline]",
    "[pipeline.engine]",
    "gpus",
    "=",
    "[0, 0]",
    "nan",
    "-1",
    '"\\u0000"',
    "{",
    "}",
    "true",
    "9" * 40,
]
QUOTE = '"' * 3
EDIT = st.tuples(
    st.integers(0, len(GOOD)), st.integers(0, 30), st.one_of(st.text(max_size=12), st.sampled_from([*SNIPPETS, QUOTE, "1e999"]))
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(EDIT, min_size=1, max_size=5))
def test_no_mutation_raises_anything_else(write: Write, edits: list[tuple[int, int, str]]) -> None:
    text = GOOD
    for at, length, new in edits:
        text = text[:at] + new + text[at + length :]
    assert_only_config_error(write(text.encode("utf-8", "surrogatepass")))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(write: Write, source: bytes) -> None:
    with pytest.raises(ConfigError):
        load(write(source))


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(10**40)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    VALUES,
    st.sampled_from(
        ["host", "host.gpus", "host.ports", "scheduler", "health.start_s", "logging.level", "pipeline", "engine", "gpus", "env"]
    ),
)
def test_no_value_raises_anything_else(write: Write, value: object, key: str) -> None:
    def toml(item: object) -> str:
        if isinstance(item, bool):
            return str(item).lower()
        if isinstance(item, str):
            return '"' + "".join(f"\\U{ord(c):08x}" for c in item if not 0xD800 <= ord(c) < 0xE000) + '"'
        if isinstance(item, list):
            return "[" + ", ".join(map(toml, item)) + "]"
        if isinstance(item, dict):
            return "{" + ", ".join(f"{toml(name)} = {toml(inner)}" for name, inner in item.items()) + "}"
        return repr(item)

    places = {
        "engine": GOOD.split("[pipeline.engine]")[0] + f"engine = {toml(value)}\n",
        "gpus": GOOD.replace("gpus = [0, 1, 2, 3]", f"gpus = {toml(value)}"),
        "env": GOOD.replace("slots = 16", f"slots = 16\nenv = {toml(value)}\nargs = {toml(value)}\nmodel = {toml(value)}").replace(
            "model = { make", "#"
        ),
        "pipeline": f"pipeline = {toml(value)}\nhost.virtual = 1\n",
    }
    assert_only_config_error(write(places.get(key) or f"{key} = {toml(value)}\n" + GOOD.replace("[host]\nvirtual = 4\n", "")))


def test_a_name_may_not_end_in_a_newline(write: Write) -> None:
    assert "pipeline[0].name" in mistakes(write(GOOD.replace('"p1"', '"p1\\n"')))


def test_what_an_attempt_recorded_is_read_again(write: Write, tmp_path: Path) -> None:
    first = load(write(GOOD))
    attempt = tmp_path / "runs" / "quick" / "attempt_1"
    attempt.mkdir(parents=True)
    record = attempt / "config.resolved.json"
    record.write_bytes(msgspec.json.encode(first.config))
    again = load(record)
    assert again.config == first.config
    assert again.name == "quick"
    for broken in (b"", b"[]", b"{", b'{"pipeline": null}', b"\xff", b"[" * 100_000):
        record.write_bytes(broken)
        with pytest.raises(ConfigError):
            load(record)
