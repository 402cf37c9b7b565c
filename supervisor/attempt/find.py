"""Which attempt somebody means: the one that is named, the one that runs, the one that can be resumed."""

import os
from dataclasses import dataclass
from pathlib import Path

from supervisor.attempt.checkpoints import resumable
from supervisor.attempt.directory import attempts, is_running, runs_directory
from supervisor.errors import UsageError


def newest_first(parent: Path) -> list[Path]:
    """The attempts in `<runs>/<config name>`."""
    paths = [parent / f"attempt_{number}" for number in sorted(attempts(parent), reverse=True)]
    return [path for path in paths if os.path.isfile(path / "run_id")]


def living(parent: Path) -> list[Path]:
    """Those of them that a supervisor has now, the newest first."""
    return [path for path in newest_first(parent) if is_running(path)]


def living_in(runs: Path) -> list[Path]:
    """Every attempt below `runs` that a supervisor has now."""
    try:
        with os.scandir(runs) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
    return [path for name in names for path in living(runs / name)]


def called(attempt: Path) -> str:
    """What to name it by on a command line: its path, from here where it is below."""
    try:
        return str(attempt.relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(attempt)


# -- what an operator means


def find_run(run: str | None, runs: Path | None = None) -> Path:
    """The attempt that an operator means: nothing, a path, or `name` or `name/attempt_N` under `runs`. Raises UsageError.

    Where several attempts may be meant, one that runs comes before one that has ended, and then the newer before the older. Nothing means
    the latest; when that has ended and another runs, that one.
    """
    runs = runs if runs is not None else runs_directory()
    if run is None:
        return _latest(runs, f"No run in {runs}. Start one, or name its directory.")
    candidates = [Path(run), runs / run]
    for candidate in candidates:
        if os.path.isdir(candidate):
            return _attempt_in(candidate, f"{run} holds no run.")
    raise UsageError(f"There is no run {run} (looked for {' and '.join(str(candidate.absolute()) for candidate in candidates)}).")


def _attempt_in(path: Path, otherwise: str) -> Path:
    if os.path.isfile(path / "run_id"):
        return path.resolve()
    if found := living(path) or newest_first(path):
        return found[0].resolve()
    return _latest(path, otherwise)


def _latest(runs: Path, otherwise: str) -> Path:
    latest = (runs / "latest").resolve()
    known = os.path.isfile(latest / "run_id")
    if known and is_running(latest):
        return latest
    alive = [path.resolve() for path in living_in(runs)]
    if len(alive) > 1:
        raise UsageError(f"Several runs go on here: {', '.join(map(called, alive))}. Name the one that you mean.")
    if alive:
        return alive[0]
    if known:
        return latest
    raise UsageError(otherwise)


# -- what can be resumed


@dataclass(frozen=True, slots=True)
class Choice:
    """The attempt that `--resume` goes on with, and the newer ones that it passes over, each with the reason."""

    path: Path
    steps: dict[str, int]
    passed: tuple[tuple[Path, str], ...] = ()


def to_resume(parent: Path) -> Choice | None:
    """Of the attempts in `<runs>/<config name>` the newest that has a checkpoint, else the newest. None when there is none.

    `steps` are those that each pipeline has behind it; empty when it would begin anew.
    """
    passed: list[tuple[Path, str]] = []
    idle: list[Path] = []
    for path in newest_first(parent):
        if steps := resumable(path / "checkpoints"):
            return Choice(path, steps, tuple(passed))
        runs = is_running(path)
        idle += [] if runs else [path]
        passed.append((path, "runs, and has no checkpoint yet" if runs else "has no checkpoint"))
    chosen = idle[0] if idle else passed[0][0] if passed else None
    return None if chosen is None else Choice(chosen, {}, tuple(pair for pair in passed if _number(pair[0]) > _number(chosen)))


def find_to_resume(run: str, runs: Path) -> Choice:
    """The same for what an operator names: an attempt, or the runs of a name. Raises UsageError."""
    for candidate in (Path(run), runs / run):
        if not os.path.isfile(candidate / "run_id") and (choice := to_resume(candidate.absolute())) is not None:
            return choice
    path = find_run(run, runs)
    return Choice(path, resumable(path / "checkpoints"))


def _number(attempt: Path) -> int:
    return int(attempt.name.rpartition("_")[2])
