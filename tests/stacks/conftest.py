"""What the tests of training stacks share: the Python of their environment, which `bin/test --stacks` makes and TRAINSHED_STACKS names."""

import os

import pytest


@pytest.fixture
def python() -> str:
    """The interpreter that has trl, peft and accelerate."""
    folder = os.environ.get("TRAINSHED_STACKS")
    if folder is None:
        pytest.skip("TRAINSHED_STACKS is not set: bin/test --stacks")
    return f"{folder}/bin/python"
