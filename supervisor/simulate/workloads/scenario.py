"""A scenario is a workload to simulate: who trains where and how long, how much work each sample is, how long engines sleep and wake.

docs/simulation.md has its JSON form.
"""

import msgspec

from supervisor.errors import UsageError


class PipelineLoad(msgspec.Struct, frozen=True):
    """One pipeline. `trajectories[step][sample]` are seconds of work at rate 1, unknown to a policy until the sample ends; `hints` are guesses."""

    id: str
    train_gpus: tuple[int, ...]
    infer_gpus: tuple[int, ...]
    tp: int
    slots_per_rank: int
    train_s: float
    trajectories: tuple[tuple[float, ...], ...]
    arrival_s: float = 0.0
    hints: tuple[tuple[float, ...], ...] = ()
    share: float = 1.0

    @property
    def ranks(self) -> int:
        return len(self.infer_gpus) // self.tp

    def bundle(self, rank: int) -> tuple[int, ...]:
        return self.infer_gpus[rank * self.tp : (rank + 1) * self.tp]

    @property
    def kind(self) -> tuple[object, ...]:
        """Return what pipelines of one kind have in common: their slowdowns should be alike, too."""
        sizes = (len(self.train_gpus), len(self.infer_gpus))
        return (*sizes, len(self.trajectories), self.tp, self.slots_per_rank, self.train_s, self.arrival_s)


class Scenario(msgspec.Struct, frozen=True):
    """One box and its pipelines. `sleep_s`: from the decision to pause an engine until its GPUs are free; `wake_s`: from the lease until it produces."""

    name: str
    gpus: int
    sleep_s: float
    wake_s: float
    pipelines: tuple[PipelineLoad, ...]

    @property
    def lower_bound(self) -> float:
        """Return the seconds that no policy can beat: all work over all GPUs; the longest pipeline's own chain with one wake and perfect
        packing; the training that any one GPU must carry."""
        busy = sum(_work(load) + len(load.trajectories) * load.train_s * len(load.train_gpus) for load in self.pipelines)
        chain = max(_chain(load) for load in self.pipelines) + self.wake_s
        carried = [sum(len(p.trajectories) * p.train_s for p in self.pipelines if gpu in p.train_gpus) for gpu in range(self.gpus)]
        return max(busy / self.gpus, chain, *carried)


def _work(load: PipelineLoad) -> float:
    """Return the GPU seconds of every rollout of a pipeline, at full engines."""
    return sum(map(sum, load.trajectories)) * load.tp / load.slots_per_rank


def _chain(load: PipelineLoad) -> float:
    places = load.slots_per_rank * load.ranks
    return load.arrival_s + sum(max(*samples, sum(samples) / places) + load.train_s for samples in load.trajectories)


def read(text: bytes) -> list[Scenario]:
    """Read scenarios from JSON: a list of them, or one. Raises UsageError naming the first mistake."""
    try:
        found = msgspec.json.decode(text, type=list[Scenario] | Scenario)
    except msgspec.DecodeError as error:
        raise UsageError(f"not a list of scenarios: {error}") from error
    scenarios = found if isinstance(found, list) else [found]
    for scenario in scenarios:
        _check(scenario)
    return scenarios


def _check(scenario: Scenario) -> None:
    for load in scenario.pipelines:
        where = f"scenario {scenario.name}, pipeline {load.id}"
        mistakes = {
            "tp must divide the number of infer_gpus, and not be 0": load.tp < 1 or not load.infer_gpus or len(load.infer_gpus) % load.tp,
            f"GPUs are 0 to {scenario.gpus - 1}": any(not 0 <= gpu < scenario.gpus for gpu in (*load.train_gpus, *load.infer_gpus)),
            "a GPU is named twice": len(set(load.train_gpus)) < len(load.train_gpus) or len(set(load.infer_gpus)) < len(load.infer_gpus),
            "train_gpus is empty": not load.train_gpus,
            "slots_per_rank must be 1 or more": load.slots_per_rank < 1,
            "trajectories must be steps of one sample or more, each of more than 0 s": not load.trajectories
            or any(not step or min(step) <= 0 for step in load.trajectories),
            "hints must have the shape of trajectories": bool(load.hints) and [*map(len, load.hints)] != [*map(len, load.trajectories)],
        }
        for words, wrong in mistakes.items():
            if wrong:
                raise UsageError(f"{where}: {words}")
    if not scenario.pipelines:
        raise UsageError(f"scenario {scenario.name} has no pipelines")
    if len({load.id for load in scenario.pipelines}) < len(scenario.pipelines):
        raise UsageError(f"scenario {scenario.name}: two pipelines have one id")
