"""The options of the built-in trainer (`[pipeline.trainer] options`). With the defaults the reward rises on the tiny tasks within five rollouts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from trainers.grpo.tasks import LENGTH, TASKS


class BadOption(ValueError):
    """An option has a value that cannot be carried out. `problem` says why; where the value must be one of a few, `choices` has them."""

    def __init__(self, key: str, value: object, problem: str, choices: Sequence[str] = ()) -> None:
        self.key, self.value, self.problem, self.choices = key, value, problem, tuple(choices)
        super().__init__(f"{key} = {value!r} {problem}" + (f" {', '.join(choices)}" if choices else ""))


@dataclass(frozen=True)
class Settings:
    """A rollout has `prompts` x `group` samples; the trainer makes `epochs` passes in minibatches of `minibatch` samples (over all ranks)."""

    task: str = "parity"
    prompts: int = 16
    group: int = 16
    epochs: int = 4
    minibatch: int = 64
    lr: float = 5e-3
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    clip: float = 0.3
    grad_clip: float = 1.0
    kl: float = 0.0
    temperature: float = 1.0
    max_new_tokens: int = LENGTH
    ignore_eos: bool = True
    checkpoint_every: int = 1
    hash_weights: bool = True
    verifiers: int = 1
    verifier_limit_s: float = 5.0

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise BadOption("options.task", self.task, "is none of", choices=tuple(TASKS))
        for name in ("prompts", "group", "epochs", "minibatch", "max_new_tokens", "checkpoint_every", "verifiers"):
            if getattr(self, name) < 1:
                raise BadOption(f"options.{name}", getattr(self, name), "must be at least 1")
        for name in ("lr", "temperature", "grad_clip", "verifier_limit_s"):
            if not getattr(self, name) > 0:
                raise BadOption(f"options.{name}", getattr(self, name), "must be above 0")

    @staticmethod
    def read(options: Mapping[str, Any]) -> "Settings":
        """Returns the settings that the options make. Raises ValueError, naming the key, for one that does not exist; BadOption for a value that cannot be."""
        types = {field.name: type(field.default) for field in fields(Settings)}
        values: dict[str, Any] = {}
        for key, given in options.items():
            wanted = types.get(key)
            if wanted is None:
                raise ValueError(f"options.{key} does not exist; there are: {', '.join(types)}")
            value = float(given) if wanted is float and type(given) is int else given
            if type(value) is not wanted:
                raise BadOption(f"options.{key}", value, f"must be of type {wanted.__name__}")
            values[key] = value
        return Settings(**values)
