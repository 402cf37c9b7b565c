"""What a child, client or operator says, and what lies where a child may write, is read by all who read it: a slice of `bin/check --long frames`."""

import asyncio
from pathlib import Path

import pytest

from tests.harness import hostile_frames, hostile_sockets


@pytest.mark.parametrize("channel", hostile_frames.CHANNELS)
def test_hostile_texts_are_that_peers_failure(channel: str, tmp_path: Path) -> None:
    read, understood = hostile_frames.play(channel, "slice", 150, tmp_path)
    assert read == 150
    assert understood, "some of them are right"


@pytest.mark.parametrize("channel", hostile_sockets.CHANNELS)
def test_hostile_texts_over_sockets_end_that_connection_alone(channel: str, tmp_path: Path) -> None:
    read, understood = asyncio.run(hostile_sockets.CHANNELS[channel]("slice", 104, tmp_path))
    assert read == 104
    assert understood
