"""The closing tables of docs/scheduling.md: every policy on data/scenarios.json, without and with hints.

bin/bench tables            Markdown on standard output
bin/bench tables --write    between the marks of docs/scheduling.md
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from supervisor.simulate.workloads.compare import Figures, figures
from supervisor.simulate.workloads.scenario import read

ROOT = Path(__file__).resolve().parents[1]
SCENARIOS = ROOT / "tests" / "data" / "scenarios.json"
PAGE = ROOT / "docs" / "scheduling.md"
MARKS = ("<!-- tables: bin/bench tables --write -->", "<!-- end of tables -->")
SHARED = ("oldest-first", "proportional", "incumbent")
UNSHARED = ("static", "serial")


def table(hints: bool) -> Iterator[str]:
    found = {policy: [figures(s, policy, hints) for s in read(SCENARIOS.read_bytes())] for policy in (*SHARED, *UNSHARED)}
    order = "the longest expected sample first" if hints else "samples in index order"
    yield f"**{'With' if hints else 'Without'} hints** ({order}, for every policy)"
    yield ""
    yield "| workload | bound s | oldest-first: ratio, resizes, Jain | proportional | incumbent | static halves | one after another |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for index, ours in enumerate(found["oldest-first"]):
        cells = [_cell(found[policy][index]) for policy in SHARED] + [f"{found[policy][index].ratio:.3f}" for policy in UNSHARED]
        yield f"| {ours.name} | {ours.lower_bound:.0f} | {' | '.join(cells)} |"
    means = [f"**{_mean(found[policy])}**" for policy in SHARED]
    means += [f"**{fmean(f.ratio for f in found[policy]):.3f}**" for policy in UNSHARED]
    yield f"| **mean; worst; resizes** | | {' | '.join(means)} |"
    yield ""


def _cell(f: Figures) -> str:
    return f"{f.ratio:.3f}, {f.outcome.resizes}, {f.jain:.3f}"


def _mean(found: list[Figures]) -> str:
    ratios = [f.ratio for f in found]
    return f"{fmean(ratios):.3f}; {max(ratios):.3f}; {fmean(f.outcome.resizes for f in found):.0f}"


def main(write: bool) -> int:
    text = "\n".join([*table(False), *table(True)])
    if not write:
        sys.stdout.write(text)
        return 0
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, mark, after = rest.partition(MARKS[1])
    assert mark, f"{PAGE} has no marks"
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{text}\n{MARKS[1]}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main("--write" in sys.argv))
