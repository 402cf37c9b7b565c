"""A trainer of two ranks that plays games of several turns in threads, asks for prompts of its own, takes the first, cancels and evaluates.

Everything is played three times under one rollout number, with other pauses each time. Each rank writes what it got to RESULT.RANK.
"""

import hashlib
import json
import random
import sys
import threading
from collections.abc import Callable
from typing import Any

from trainshed import Pipeline, Refused, Rollout, Sample, connect

GAMES, TURNS = 8, 3


def main() -> None:
    pipeline = connect()
    pipeline.restore(dict)
    found = {
        "games": [games(pipeline) for _ in range(3)],
        "own": [own(pipeline) for _ in range(3)],
        "keyed": [keyed(pipeline) for _ in range(3)],
        "apart": apart(pipeline),
        "first": first(pipeline),
        "evaluation": [evaluation(pipeline) for _ in range(2)],
    }
    with open(f"{sys.argv[1]}.{pipeline.rank}", "w", encoding="ascii") as file:
        json.dump(found, file)


def ids(samples: list[Sample]) -> str:
    return hashlib.sha256(json.dumps([[sample.output_ids, sample.logprobs] for sample in samples]).encode()).hexdigest()[:12]


def play(rollout: Rollout, game: int) -> None:
    with rollout.trajectory(game) as trajectory:
        tokens = [4]
        for _ in range(TURNS):
            tokens = [*tokens, *trajectory.generate(tokens, max_new_tokens=4, ignore_eos=True).output_ids, 5]
            threading.Event().wait(random.random() / 50)  # the tool


def in_threads(work: Callable[[Rollout, int], None], rollout: Rollout) -> None:
    threads = [threading.Thread(target=work, args=(rollout, game)) for game in random.sample(range(GAMES), GAMES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def games(pipeline: Pipeline) -> Any:
    with pipeline.rollout(trajectories=GAMES, number=0) as rollout:
        in_threads(play, rollout)
        samples = rollout.samples()
    assert [sample.key for sample in samples] == [(game, turn) for game in range(GAMES) for turn in range(TURNS)]
    return ids(samples)


def own(pipeline: Pipeline) -> Any:
    """Equal prompts on both ranks: different samples."""
    with pipeline.rollout(target=4, number=1, per_rank=True) as rollout:
        threading.Event().wait(random.random() / 20)
        return ids(rollout.generate([[4, 5]] * 4, max_new_tokens=8, ignore_eos=True))


def keyed(pipeline: Pipeline) -> Any:
    with pipeline.rollout(target=4, number=2, per_rank=True) as rollout:
        keys = [("group", pipeline.rank + pipeline.world_size * index) for index in range(4)]
        random.shuffle(keys)
        return ids(rollout.samples(sorted(rollout.start([[4, 5]] * 4, keys=keys, max_new_tokens=8, ignore_eos=True))))


def apart(pipeline: Pipeline) -> str:
    """Each rank asks for other prompts in a rollout of all: one of them is told so."""
    try:
        with pipeline.rollout(target=8, number=3) as rollout:
            rollout.start([[4 + pipeline.rank]] * 4, keys=[(pipeline.rank, index) for index in range(4)], max_new_tokens=2)
            rollout.samples()
    except Refused as error:
        return error.code
    return ""


def first(pipeline: Pipeline) -> Any:
    with pipeline.rollout(target=4, number=4) as rollout:
        rollout.start([[4, 5]] * 12, max_new_tokens=200, ignore_eos=False)
        taken = rollout.first(4)
    every = rollout.samples()
    aborted = [sample.index for sample in every if sample.finish_reason["type"] == "abort"]
    return {"taken": [sample.index for sample in taken], "aborted": aborted, "said": sorted(every[taken[0].index].meta_info)}


def evaluation(pipeline: Pipeline) -> Any:
    with pipeline.rollout(target=2, evaluation=True) as rollout:
        return [rollout.number, ids(rollout.generate([[4, 5]] * 2, max_new_tokens=8, ignore_eos=True))]


main()
