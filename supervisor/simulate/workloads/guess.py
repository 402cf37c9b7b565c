"""This module makes a scenario of a user's own configuration and guessed durations (defaults: `cli/simulate.py`), to answer what sharing would bring."""

from dataclasses import dataclass
from math import exp, log
from random import Random

from supervisor.config.schema.tables import Config, PipelineTable
from supervisor.errors import UsageError

from .scenario import PipelineLoad, Scenario

LONGEST = 6.0
"""No sample is longer than so many times the mean: a limit of tokens cuts it off."""


@dataclass(frozen=True, slots=True)
class Guess:
    """Seconds of one training, mean seconds of one sample on a full engine, samples of one rollout. `spread`: deviation of the log of a sample's length."""

    train_s: float
    sample_s: float
    samples: int
    spread: float
    steps: int
    sleep_s: float
    wake_s: float
    seed: int = 0


def scenario(config: Config, name: str, guess: Guess) -> Scenario:
    """Make a scenario: lengths are log-normal about the mean, hints are off by a factor of log-normal spread 0.5. Raises UsageError."""
    if min(guess.train_s, guess.sample_s, guess.samples, guess.steps) <= 0 or min(guess.spread, guess.sleep_s, guess.wake_s) < 0:
        raise UsageError("--train-s, --sample-s, --samples and --steps are more than 0, the others not less.")
    host = config.host
    named = [gpu for pipeline in config.pipeline for gpu in (*pipeline.engine.gpus, *pipeline.trainer.gpus)]
    count = host.virtual or (len(host.gpus) if isinstance(host.gpus, list) else max(named) + 1)
    return Scenario(name, count, guess.sleep_s, guess.wake_s, tuple(_load(pipeline, guess) for pipeline in config.pipeline))


def _load(pipeline: PipelineTable, guess: Guess) -> PipelineLoad:
    random = Random(f"{guess.seed}/{pipeline.name}")
    median = log(guess.sample_s) - guess.spread**2 / 2
    steps = min(pipeline.trainer.steps, guess.steps)

    def length() -> float:
        return min(guess.sample_s * LONGEST, exp(random.gauss(median, guess.spread)))

    lengths = tuple(tuple(length() for _ in range(guess.samples)) for _ in range(steps))
    hints = tuple(tuple(seconds * exp(random.gauss(0.0, 0.5)) for seconds in step) for step in lengths)
    engine = pipeline.engine
    train = tuple(sorted(set(pipeline.trainer.gpus)))
    return PipelineLoad(
        pipeline.name, train, tuple(engine.gpus), engine.tp, engine.slots, guess.train_s, lengths, hints=hints, share=pipeline.share
    )
