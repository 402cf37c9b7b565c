"""`supervise plan` decides single cases; `supervise simulate` runs a scenario, or your TOML with durations that you guess (defaults here)."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from supervisor.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from supervisor.simulate.workloads.scenario import Scenario


def plan(cases: Path, /) -> int:
    """Answer planner cases (a JSON object a line; docs/simulation.md): which engines to wake and to pause, and the GPUs left idle."""
    import msgspec

    from supervisor.simulate.planner_cases import answers

    with _of(cases):
        for answer in answers(_bytes(cases).splitlines()):
            sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
    sys.stdout.flush()
    return int(ExitCode.DONE)


def simulate(
    workload: Path,
    /,
    *,
    policy: Annotated[
        str, Parameter("--policy", help="oldest-first, proportional (ours, by rule for targets), incumbent, static, serial, solo; or all.")
    ] = "oldest-first",
    hints: Annotated[
        bool, Parameter("--hints", negative="", help="Durations can be guessed: the longest expected sample starts first.")
    ] = False,
    json: Annotated[bool, Parameter("--json", negative="", help="For programs: JSON on standard output.")] = False,
    train_s: Annotated[float | None, Parameter("--train-s", help="For a TOML file: seconds of one training.")] = None,
    sample_s: Annotated[float | None, Parameter("--sample-s", help="For a TOML file: mean seconds of one sample on a full engine.")] = None,
    samples: Annotated[int, Parameter("--samples", help="For a TOML file: samples of one rollout.")] = 128,
    spread: Annotated[float, Parameter("--spread", help="For a TOML file: standard deviation of the log of a sample's length.")] = 0.8,
    steps: Annotated[int, Parameter("--steps", help="For a TOML file: simulate at most so many steps.")] = 5,
    sleep_s: Annotated[float, Parameter("--sleep-s", help="For a TOML file: seconds to drain and pause an engine.")] = 1.0,
    wake_s: Annotated[float, Parameter("--wake-s", help="For a TOML file: seconds to wake an engine.")] = 3.0,
) -> int:
    """Run the scheduler in virtual time: on scenarios (JSON; docs/simulation.md), or on your own TOML with guessed durations."""
    from supervisor.simulate.workloads.compare import POLICIES, figures
    from supervisor.views import simulation as view

    if policy not in (*POLICIES, "all"):
        raise UsageError(f"no policy {policy!r}; there are {', '.join(POLICIES)}, or all.")
    if workload.suffix == ".toml":
        scenarios = [_guessed(workload, train_s, sample_s, samples, spread, steps, sleep_s, wake_s)]
    else:
        from supervisor.simulate.workloads.scenario import read

        with _of(workload):
            scenarios = read(_bytes(workload))
    chosen = POLICIES if policy == "all" else (policy,)
    found = [figures(scenario, each, hints) for scenario in scenarios for each in chosen]
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(view.as_json(found)).decode() + "\n")
        sys.stdout.flush()
    else:
        view.show(found)
    return int(ExitCode.DONE)


def _guessed(
    file: Path, train_s: float | None, sample_s: float | None, samples: int, spread: float, steps: int, sleep_s: float, wake_s: float
) -> "Scenario":
    from supervisor.config.load import load
    from supervisor.simulate.workloads.guess import Guess, scenario

    loaded = load(file)  # first of all: is there such a file?
    if train_s is None or sample_s is None:
        raise UsageError(f"how long do things take in {file}? Guess --train-s (seconds of one training) and --sample-s (of one sample).")
    return scenario(loaded.config, loaded.name, Guess(train_s, sample_s, samples, spread, steps, sleep_s, wake_s))


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}.") from error


@contextlib.contextmanager
def _of(file: Path) -> Iterator[None]:
    """Name this file in every complaint about it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
