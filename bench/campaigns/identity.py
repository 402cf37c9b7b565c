"""Five seeds: `p1` alone and `p1` beside `p2` learn the same, bit for bit; and by how much the reward rises in five rollouts.

bin/check --long identity [SEEDS]
"""

import statistics
import sys
import tempfile
from pathlib import Path

from bench.campaigns.harness.campaign import run
from tests.harness.supervised_run import Run, configuration


def case(id: str) -> dict[str, object]:
    seed = int(id.removeprefix("seed-"))
    with tempfile.TemporaryDirectory(prefix="identity-") as folder:
        cwd = Path(folder)
        alone = Run(cwd, configuration(cwd / "alone.toml", names=("p1",), seeds=(seed,), steps=5))
        assert alone.end() == 0, alone.tail()
        beside = Run(cwd, configuration(cwd / "beside.toml", seeds=(seed, seed + 100), steps=5))
        assert beside.end() == 0, beside.tail()
        for made in (alone, beside):
            assert made.left_behind() == []
        assert len(alone.metrics("p1")) == 5
        assert alone.metrics("p1") == beside.metrics("p1"), f"seed {seed}: p1 learned something else beside p2"
        summary = beside.summary
        assert all(pipeline["samples"] == 5 * 256 and pipeline["weight_version"] == 5 for pipeline in summary.values())
        return {
            "identical": True,
            "weights": str(alone.metrics("p1")[-1]["weights"])[:16],
            "pauses": summary["p1"]["pauses"],
            **{f"{name}_{which}": round(summary[name][f"{which}_reward"], 4) for name in ("p1", "p2") for which in ("first", "last")},
        }


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    results = run("identity", [f"seed-{seed}" for seed in range(1, count + 1)], case)
    for name in ("p1", "p2"):
        gains = [float(str(record[f"{name}_last"])) - float(str(record[f"{name}_first"])) for record in results]
        print(
            f"{name}: reward rises by {min(gains):.3f} to {max(gains):.3f}, median {statistics.median(gains):.3f}, over {len(gains)} seeds"
        )
    print(f"bit-identical alone and beside: {sum(bool(record['identical']) for record in results)} of {len(results)}")
