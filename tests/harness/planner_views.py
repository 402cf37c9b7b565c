"""Views for the planner: small boxes written in a line, and random ones."""

from hypothesis import strategies as st

from supervisor.scheduler.planning.planner import Bundle, Share, View
from trainers.protocol.ids import GpuId, PipelineId


def share(
    name: str, mapping: list[int], *, tp: int = 1, awake: tuple[int, ...] = (), unfinished: int = 64, slots: int = 8, **more: object
) -> Share:
    bundles = tuple(
        Bundle(rank, frozenset(map(GpuId, mapping[rank * tp : (rank + 1) * tp])), rank in awake) for rank in range(len(mapping) // tp)
    )
    return Share(PipelineId(name), unfinished, slots, float(more.pop("opened", 0.0)), bundles, **more)  # type: ignore[arg-type]


def view(count: int, *shares: Share, targets: str = "oldest-first") -> View:
    return View(frozenset(map(GpuId, range(count))), shares, targets)


@st.composite
def views(draw: st.DrawFn, most: int = 4) -> View:
    """Boxes of up to 8 GPUs, mixed tp, partial mappings, whatever is awake without two on a GPU."""
    count = draw(st.integers(1, 8))
    free = set(range(count))
    shares = []
    for index in range(draw(st.integers(1, most))):
        tp = draw(st.sampled_from([t for t in (1, 1, 2, 4) if t <= count]))
        size = draw(st.integers(1, count // tp)) * tp
        start = draw(st.integers(0, count - size))
        mapping = list(range(start, start + size))
        awake = []
        for rank in range(size // tp):
            gpus = set(mapping[rank * tp : (rank + 1) * tp])
            if gpus <= free and draw(st.booleans()):
                free -= gpus
                awake.append(rank)
        expected = draw(st.sampled_from([0.0, 0.0, 500.0]))
        shares.append(
            share(
                f"p{index}", mapping, tp=tp, awake=tuple(awake), unfinished=draw(st.integers(0, 70)), opened=draw(st.integers(0, 3)),
                weight=draw(st.sampled_from([1.0, 1.0, 2.0])), home=frozenset(map(GpuId, mapping[:2])),
                expected=expected, longest=expected / 10,
            )
        )  # fmt: skip
    withheld = draw(st.sets(st.integers(0, count - 1), max_size=2))
    lent = frozenset(map(GpuId, range(count))) - frozenset(map(GpuId, withheld))
    return View(lent, tuple(shares), draw(st.sampled_from(["oldest-first", "proportional"])))
