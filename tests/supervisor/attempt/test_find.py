"""Which attempt is meant: by an operator, and by `--resume`."""

from pathlib import Path

import msgspec
import pytest

from supervisor.attempt.checkpoints import Remembered, Saved
from supervisor.attempt.directory import RunDirectory, new_attempt
from supervisor.attempt.find import Choice, choose, find_run, newest_resumable, open_chosen
from supervisor.attempt.summary import Summary, write
from supervisor.config.schema.tables import Config
from supervisor.errors import UsageError


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def living(runs: Path, name: str) -> RunDirectory:
    attempt = new_attempt(runs, name)
    attempt.begin(Config([]), b"#")
    return attempt


def dead(runs: Path, name: str, steps: int = 0) -> Path:
    """One that has ended, with a checkpoint after so many steps."""
    attempt = living(runs, name)
    attempt.close()
    if steps:
        saved = attempt.checkpoints("p1") / "step"
        saved.mkdir()
        record = Remembered((Saved(steps - 1, str(saved)),))
        (attempt.checkpoints("p1") / "resume.json").write_bytes(msgspec.json.encode(record))
    return attempt.path


def test_a_run_is_found_by_what_an_operator_says(runs: Path) -> None:
    _, newest_a, b = dead(runs, "a"), dead(runs, "a"), dead(runs, "b")
    assert find_run(None) == b
    assert find_run("a") == newest_a
    assert find_run("a/attempt_2") == newest_a
    assert find_run("runs/a") == newest_a
    assert find_run(str(newest_a)) == newest_a
    assert find_run("runs") == b
    for absent in ("c", "/tmp/none", "a/attempt_9"):
        with pytest.raises(UsageError):
            find_run(absent)


def test_a_newer_attempt_without_a_checkpoint_comes_before_an_older_success(runs: Path) -> None:
    done = dead(runs, "a", steps=3)
    write(done, Summary(run="a-1", exit=0, wall_s=1.0, pipelines={}))
    assert newest_resumable(runs / "a") == Choice(done, {"p1": 3}), "alone, it is what is meant"
    killed = dead(runs, "a")
    assert newest_resumable(runs / "a") == Choice(killed, {})
    later = dead(runs, "a")
    assert newest_resumable(runs / "a") == Choice(later, {})
    one = living(runs, "a")
    assert newest_resumable(runs / "a") == Choice(later, {}, ((one.path, "runs, and has no checkpoint yet"),))
    one.close()


def test_a_running_attempt_is_not_passed_over_for_an_older_success(runs: Path) -> None:
    write(dead(runs, "a", steps=3), Summary(run="a-1", exit=0, wall_s=1.0, pipelines={}))
    one = living(runs, "a")
    with pytest.raises(UsageError, match="another supervisor runs there"):
        open_chosen(choose(runs, "a", resume=True), runs, "a")
    one.close()


def test_a_failure_with_a_checkpoint_comes_before_a_newer_attempt_without(runs: Path) -> None:
    failed = dead(runs, "a", steps=3)
    write(failed, Summary(run="a-1", exit=4, wall_s=1.0, pipelines={}))
    killed = dead(runs, "a")
    assert newest_resumable(runs / "a") == Choice(failed, {"p1": 3}, ((killed, "has no checkpoint"),))


def test_what_runs_comes_before_what_has_ended(runs: Path) -> None:
    one = living(runs, "a")
    later = dead(runs, "a")
    assert find_run(None) == one.path, "the latest has ended"
    assert find_run("a") == one.path
    assert find_run("a/attempt_2") == later, "unless it is named"
    two = living(runs, "b")
    assert find_run(None) == two.path, "the latest, and it runs"
    dead(runs, "c")
    with pytest.raises(UsageError, match="Several runs go on here: runs/a/attempt_1, runs/b/attempt_1"):
        find_run(None)
    one.close()
    assert find_run(None) == two.path
    two.close()
    assert find_run(None) == runs / "c" / "attempt_1"


def test_resumed_is_the_newest_that_has_a_checkpoint(runs: Path) -> None:
    assert newest_resumable(runs / "a") is None
    first = dead(runs, "a")
    choice = newest_resumable(runs / "a")
    assert choice is not None
    assert (choice.path, choice.steps) == (first, {})
    with_one, without = dead(runs, "a", steps=3), dead(runs, "a")
    choice = newest_resumable(runs / "a")
    assert choice is not None
    assert (choice.path, choice.steps, choice.passed) == (with_one, {"p1": 3}, ((without, "has no checkpoint"),))
    started = living(runs, "a")
    choice = newest_resumable(runs / "a")
    assert choice is not None
    assert choice.path == with_one
    assert choice.passed[0] == (started.path, "runs, and has no checkpoint yet")
    started.close()


def test_without_any_checkpoint_the_newest_that_does_not_run_begins_anew(runs: Path) -> None:
    ended, alive = dead(runs, "a"), living(runs, "a")
    choice = newest_resumable(runs / "a")
    assert choice is not None
    assert (choice.path, choice.steps) == (ended, {})
    assert [path for path, _ in choice.passed] == [alive.path]
    alive.close()


def test_a_checkpoint_that_is_no_longer_there_does_not_count(runs: Path) -> None:
    with_one = dead(runs, "a", steps=3)
    (with_one / "checkpoints" / "p1" / "step").rmdir()
    newer = dead(runs, "a")
    choice = newest_resumable(runs / "a")
    assert choice is not None
    assert choice.path == newer


def test_what_an_operator_names_to_be_resumed(runs: Path) -> None:
    with_one, newer = dead(runs, "a", steps=3), dead(runs, "a")

    def chosen(named: str) -> Choice:
        choice = choose(runs, None, named=named)
        assert choice is not None
        return choice

    assert chosen("a").path == with_one, "the runs of a name"
    assert chosen("runs/a").steps == {"p1": 3}
    assert chosen("a/attempt_2").path == newer, "exactly that one"
    with pytest.raises(UsageError):
        chosen("nowhere")
    alive = living(runs, "b")
    with pytest.raises(UsageError, match="another supervisor runs there"):
        chosen("b")
    assert choose(runs, "b", named="b") == Choice(alive.path, {}), "with a file of its own the configuration is looked at first"
    alive.close()


def test_what_a_run_goes_on_with(runs: Path) -> None:
    assert choose(runs, "a") is None, "a new attempt"
    with pytest.raises(UsageError, match=r"a has no attempt in .* that could be resumed"):
        choose(runs, "a", resume=True)
    first = dead(runs, "a", steps=3)
    assert choose(runs, "a") is None
    choice = choose(runs, "a", resume=True)
    assert choice == Choice(first, {"p1": 3})
    for attempt, path in ((open_chosen(choice, runs, "a"), first), (open_chosen(None, runs, "a"), first.parent / "attempt_2")):
        assert attempt.path == path
        attempt.close()
