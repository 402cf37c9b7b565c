from pathlib import Path

import pytest

from tests.harness.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded model of 80,000 parameters whose answers are sharp enough to differ."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), scale=4.0)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights."""
    return make_tiny_model(tmp_path_factory.mktemp("other"), seed=1, scale=4.0)
