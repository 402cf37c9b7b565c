"""What a run cost, in a few lines below its summary: how GPUs and pipelines spent their time, who was waited for, whether sharing was worth it."""

from collections.abc import Iterator

from rich.text import Text

from supervisor.history import totals
from supervisor.history.fold import History
from supervisor.history.totals import Split, WaitedFor
from supervisor.simulate.workloads.measured import Worth, worth

_GPU_WORDS = (
    ("work", totals.WORK),
    ("switches", totals.LOST_TO_SHARING),
    ("idle", totals.IDLE),
    ("start", ("start",)),
    ("failures", ("failed",)),
)
_PIPELINE_WORDS = ("train", "generate", "own")
_WORDS = {"own": "own work"}
_LEAST_S = 0.05
"""Waits for somebody that are shorter together are not told."""


def costs(history: History) -> Iterator[Text]:
    """Yield the lines; none of a run in which nothing was lent."""
    box = totals.together(totals.of_gpus(history).values())
    if not box.share(*totals.WORK):
        return
    told = [f"{word} {_percent(box.share(*kinds))}" for word, kinds in _GPU_WORDS if box.share(*kinds) >= 0.0005]
    yield Text(f"GPU time: {', '.join(told)}")
    for name, split in totals.of_pipelines(history).items():
        yield Text(f"{name}: {_pipeline(split, totals.waited(history, name), name)}")
    found = worth(history)
    if found is not None and len(found.alone) > 1:
        yield Text(verdict(found))


def verdict(found: Worth) -> str:
    """Return in a sentence what sharing has brought."""
    return (
        f"One after another, the same work would have taken {_seconds(found.in_turn)} (simulated); "
        f"shared it took {_seconds(found.shared)}: {found.times:.2f} times as fast"
    )


def _pipeline(split: Split, waited: WaitedFor, name: str) -> str:
    told = [f"{_WORDS.get(kind, kind)} {_percent(split.share(kind))}" for kind in _PIPELINE_WORDS]
    if waited.total < _LEAST_S:
        return ", ".join(told)
    for_whom = sorted(waited.by_pipeline.items(), key=lambda pair: -pair[1])
    words = [
        f"{'its own engines' if who == name else who or 'nobody: it had to start'} {_seconds(seconds)}"
        for who, seconds in for_whom
        if seconds >= _LEAST_S
    ]
    whom = f" for {', '.join(words)}" if words else ""
    return f"{', '.join(told)}; waited {_seconds(waited.total)}{whom}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
