"""This module checks the options of the built-in trainer and of its model recipe, whose names and values are known before a start."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Final

from supervisor.config.schema.findings import Finding
from supervisor.config.schema.toml_text import join
from trainers.grpo import tiny
from trainers.grpo.settings import BadOption, Settings

TRAINER: Final = "trainers.grpo:main"
RECIPE: Final = "trainers.grpo.tiny:make"
_KINDS: Final = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


def trainer_options(options: Mapping[str, object], path: str) -> Iterator[Finding]:
    """`path` is that of the table `options`."""
    kinds = {field.name: type(field.default) for field in fields(Settings)}
    for key, value in options.items():
        where = join(path, key)
        if key not in kinds:
            close = difflib.get_close_matches(key[:64], kinds, n=1)
            remedy = f"Did you mean `{close[0]}`?" if close else f"There are: {', '.join(kinds)}."
            yield Finding(where, value, "is no option of the built-in trainer", remedy)
            continue
        wanted = kinds[key]
        if not (type(value) is wanted or (wanted is float and type(value) is int)):
            yield Finding(where, value, "is not what the built-in trainer takes", f"Give {_KINDS[wanted]}.")
            continue
        try:
            Settings.read({key: value})
        except BadOption as error:
            yield _refused(where, value, error)


def recipe_options(options: Mapping[str, object], path: str) -> Iterator[Finding]:
    """Checks values only; names are checked against the function itself."""
    for key, value in options.items():
        where = join(path, key)
        if key not in ("task", "seed", "layers", *tiny.SIZES):
            continue
        wanted = str if key == "task" else int
        if type(value) is not wanted:
            yield Finding(where, value, "is not what the recipe takes", f"Give {_KINDS[wanted]}.")
            continue
        try:
            tiny.refuse({key: value})
        except BadOption as error:
            yield _refused(where, value, error)


def _refused(where: str, value: object, error: BadOption) -> Finding:
    """Returns the trainer's own objection as a finding at the key of the file."""
    if error.choices:
        close = difflib.get_close_matches(str(value)[:64], error.choices, n=1)
        return Finding(
            where, value, "does not exist", f'Did you mean "{close[0]}"?' if close else f"There are: {', '.join(error.choices)}."
        )
    return Finding(where, value, error.problem, "Change it.")
