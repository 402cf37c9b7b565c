"""This module finds the attempt that somebody means: the one that is named, the one that runs, the one that can be resumed.

`choose` is all that `run` needs of it, `find_run` what the other commands need. A run of another user is never "no run": `Foreign` says whose it is.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from supervisor.attempt import summary
from supervisor.attempt.box_runs import BoxRun, box_runs
from supervisor.attempt.checkpoints import resumable
from supervisor.attempt.directory import (
    RunDirectory,
    already_running,
    attempt_numbers,
    is_running,
    new_attempt,
    open_attempt,
    runs_directory,
)
from supervisor.errors import ExitCode, UsageError
from supervisor.host.regular_file import shared_with, user_name

# -- what `run` goes on with


@dataclass(frozen=True, slots=True)
class Choice:
    """The attempt that `--resume` goes on with, and the newer ones that it passes over, each with the reason.

    `steps` are those that each pipeline has done; empty when it would begin anew.
    """

    path: Path
    steps: dict[str, int]
    passed: tuple[tuple[Path, str], ...] = ()


def choose(runs: Path, name: str | None, *, resume: bool = False, named: str | None = None) -> Choice | None:
    """Choose the attempt that a run goes on with; None means a new one. Raises UsageError.

    `name` is that of the configuration file; without a file (None) the configuration comes from the attempt, which must be `named` and must
    not run now. `resume` asks for the newest attempt of that name that has a checkpoint, else the newest.
    """
    if named is not None:
        choice = _choose_named(named, runs)
        if name is None and is_running(choice.path):
            raise already_running(choice.path)  # rather than to find out that its ports are taken
        return choice
    if not resume:
        return None
    if name is None or (newest := newest_resumable(runs / name)) is None:
        raise UsageError(f"{name} has no attempt in {runs} that could be resumed.")
    return newest


def open_chosen(choice: Choice | None, runs: Path, name: str) -> RunDirectory:
    """Lock the chosen attempt, or make a new one in `<runs>/<name>`. Raises UsageError, SetUpError; both for a place that others can change."""
    parent = choice.path.absolute().parent if choice is not None else runs / name
    for folder in (parent.parent, parent):
        if (whose := shared_with(folder)) is not None:
            raise UsageError(
                f"{folder} is not safe for runs: {whose}, and could replace their files while we use them. "
                "Take write permission away from others, or set [host] directory to one of your own."
            )
    return open_attempt(choice.path) if choice is not None else new_attempt(runs, name)


def newest_resumable(parent: Path) -> Choice | None:
    """Return, of the attempts in `<runs>/<config name>`, the newest that has a checkpoint, else the newest. None when there is none.

    An attempt that has ended with 0 has nothing left to go on with: one that is newer and was killed before its first checkpoint comes before
    it, and begins anew. Else a loop of `run --resume` would report the success of an older run.
    """
    passed: list[tuple[Path, str]] = []
    idle: list[Path] = []
    for path in _newest_first(parent):
        if steps := resumable(path / "checkpoints"):
            if passed and _has_succeeded(path):
                break
            return Choice(path, steps, tuple(passed))
        runs = is_running(path)
        idle += [] if runs else [path]
        passed.append((path, "runs, and has no checkpoint yet" if runs else "has no checkpoint"))
    chosen = idle[0] if idle else passed[0][0] if passed else None
    return None if chosen is None else Choice(chosen, {}, tuple(pair for pair in passed if _number(pair[0]) > _number(chosen)))


def _has_succeeded(attempt: Path) -> bool:
    ended = summary.read(attempt)
    return ended is not None and ended.exit == ExitCode.DONE


def _choose_named(run: str, runs: Path) -> Choice:
    """Choose the attempt that an operator names, or the newest that can be resumed of the runs that he names. Raises UsageError."""
    for candidate in (Path(run), runs / run):
        if not os.path.isfile(candidate / "run_id") and (choice := newest_resumable(candidate.absolute())) is not None:
            return choice
    path = find_run(run, runs)
    return Choice(path, resumable(path / "checkpoints"))


def _number(attempt: Path) -> int:
    return int(attempt.name.rpartition("_")[2])


# -- what an operator means


class Foreign(UsageError):
    """What is meant belongs to another user, or lies elsewhere. `runs` are those that go on and may be meant."""

    def __init__(self, text: str, runs: tuple[BoxRun, ...] = ()) -> None:
        self.runs = runs
        super().__init__(text)


def find_run(run: str | None, runs: Path | None = None, *, acting: bool = False) -> Path:
    """Find the attempt that an operator means: nothing, a path, or `name` or `name/attempt_N` under `runs`. Raises UsageError, Foreign.

    Where several attempts may be meant, one that runs comes before one that has ended, and then the newer before the older. Nothing means
    the latest; when that has ended and another runs, that one. `acting`: something is done to it, so of two that run none is chosen.
    A name that nothing has here may be that of a run of ours elsewhere on this box.
    """
    runs = runs if runs is not None else runs_directory()
    if run is None:
        return _latest(runs, f"No run in {runs}. Start one, or name its directory.", acting)
    candidates = [Path(run), runs / run]
    for candidate in candidates:
        if os.path.isdir(candidate):
            return _attempt_in(candidate, f"{run} holds no run.", acting)
    known = [one for one in box_runs() if one.is_called(run) or any(one.is_below(candidate) for candidate in candidates)]
    if ours := [Path(one.directory) for one in known if one.ours]:
        return _only(ours)
    _refuse_foreign(run, known)
    for candidate in candidates:
        _refuse_closed(candidate)
    raise UsageError(f"There is no run {run} (looked for {' and '.join(str(candidate.absolute()) for candidate in candidates)}).")


def _attempt_in(path: Path, otherwise: str, acting: bool) -> Path:
    if os.path.isfile(path / "run_id"):
        return path.resolve()
    alive = running(path)
    if acting and len(alive) > 1:
        return _only(alive)
    if found := alive or _newest_first(path):
        return found[0].resolve()
    _refuse_closed(path)
    return _latest(path, otherwise, acting)


def _latest(runs: Path, otherwise: str, acting: bool) -> Path:
    latest = (runs / "latest").resolve()
    known = os.path.isfile(latest / "run_id")
    if known and not acting and is_running(latest):
        return latest
    alive = [path.resolve() for path in running_below(runs)]
    if alive:
        return _only(alive)
    if known:
        return latest
    _refuse_foreign(str(runs), [one for one in box_runs() if not one.ours and one.is_below(runs)])
    for attempt in (latest, *_attempts_below(runs)):
        _refuse_closed(attempt)
    if known_elsewhere := box_runs():
        there = "; ".join(map(str, known_elsewhere))
        raise Foreign(f"{otherwise} Elsewhere on this box: {there}.", tuple(known_elsewhere))
    raise UsageError(otherwise)


def _only(alive: list[Path]) -> Path:
    """Return the only one. Raises UsageError when there are several, and names them."""
    if len(alive) > 1:
        raise UsageError(f"Several runs go on here: {', '.join(map(display_path, alive))}. Name the one that you mean.")
    return alive[0].resolve()


def _refuse_foreign(what: str, known: list[BoxRun]) -> None:
    """Raises Foreign for runs of other users that go on."""
    if known:
        users = " and ".join(dict.fromkeys(one.user for one in known))
        raise Foreign(f"{what} belongs to {users}, and only they may act on it: {'; '.join(map(str, known))}.", tuple(known))


def _refuse_closed(path: Path) -> None:
    """Raises Foreign for a folder of somebody else's that we may not look into, or that lies in one."""
    for folder in (path.absolute(), *path.absolute().parents):
        try:
            owner = folder.stat().st_uid
        except PermissionError:  # whose the folder above is tells whom to ask
            continue
        except OSError:
            return
        if owner != os.geteuid() and not os.access(folder, os.R_OK | os.X_OK):
            _refuse_foreign(str(path), [one for one in box_runs() if not one.ours and one.is_below(path)])
            where = "" if folder == path.absolute() else f" lies in {folder}, which"
            text = f"{path}{where} belongs to {user_name(owner)} (uid {owner}): only they may look into it."
            raise Foreign(f"{text} None that goes on is known there.")
        return


def running(parent: Path) -> list[Path]:
    """Return the attempts in `<runs>/<config name>` that a supervisor has now, the newest first."""
    return [path for path in _newest_first(parent) if is_running(path)]


def running_below(runs: Path) -> list[Path]:
    """Return every attempt below `runs` that a supervisor has now."""
    try:
        with os.scandir(runs) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    return [path for name in names for path in running(runs / name)]


def _attempts_below(runs: Path) -> list[Path]:
    """Return every folder below `runs` that is called as an attempt is, also one that we may not look into; `runs` may be the folder of one name."""
    try:
        with os.scandir(runs) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    folders = (runs, *(runs / name for name in names))
    return [folder / f"attempt_{number}" for folder in folders for number in sorted(attempt_numbers(folder), reverse=True)]


def _newest_first(parent: Path) -> list[Path]:
    paths = [parent / f"attempt_{number}" for number in sorted(attempt_numbers(parent), reverse=True)]
    return [path for path in paths if os.path.isfile(path / "run_id")]


def display_path(attempt: Path) -> str:
    """Return what to call an attempt on a command line: its path, relative where it lies below the working directory."""
    try:
        return str(attempt.relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(attempt)
