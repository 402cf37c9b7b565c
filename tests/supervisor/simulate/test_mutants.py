"""Bugs put into the scheduler by hand are caught. All of them: `bin/check --long mutants scheduler`; here that each still is one, and a few."""

import pytest

from tests.harness.mutation import killer
from tests.harness.scheduler_mutants import MUTANTS


@pytest.mark.parametrize("name", MUTANTS)
def test_the_code_that_a_mutant_breaks_is_still_there(name: str) -> None:
    """A mutant whose text is gone tests nothing: look what has become of the rule, and write it anew."""
    mutant = MUTANTS[name]
    compile(mutant.mutated(), mutant.file, "exec")


def test_there_are_enough_and_the_incumbents_behaviour_is_among_them() -> None:
    assert len(MUTANTS) >= 25
    assert {f"RB-D{number}" for number in range(1, 17)} <= {name.split()[0] for name in MUTANTS}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["RB-D9 an aged reservation is overtaken", "an exit of an old life", "RB-D5 a holder without demand keeps its GPUs"]
)
def test_a_mutant_is_caught(name: str) -> None:
    assert killer(MUTANTS[name])
