"""This module prints the tables of `simulate`."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from supervisor.simulate.workloads.compare import Figures


def as_json(found: Sequence[Figures]) -> dict[str, Any]:
    """Return the form of the answer for programs."""
    return {
        "scenarios": [
            {
                "name": f.name,
                "makespan_s": round(f.outcome.makespan, 3),
                "resizes": f.outcome.resizes,
                "busy_gpu_s": round(f.outcome.busy, 3),
                "ends": [round(end, 3) for end in f.outcome.ends],
                "policy": f.policy,
                "lower_bound_s": round(f.lower_bound, 3),
                "slowdowns": [round(slowdown, 4) for slowdown in f.slowdowns],
                "jain": round(f.jain, 5),
            }
            for f in found
        ]
    }


def show(found: Sequence[Figures]) -> None:
    """Print one line a scenario and policy, and a line of means for several scenarios."""
    policies = list(dict.fromkeys(f.policy for f in found))
    table = Table("scenario", "policy", box=None, pad_edge=False)
    for name in ("makespan s", "/ bound", "busy", "resizes", "Jain"):
        table.add_column(name, justify="right")
    table.add_column("ends s (slowdown)", overflow="fold")
    for f in found:
        ends = "  ".join(f"{end:.0f} ({slowdown:.2f})" for end, slowdown in zip(f.outcome.ends, f.slowdowns, strict=True))
        figures = (f"{f.outcome.makespan:.1f}", f"{f.ratio:.3f}", f"{f.busy_share:.0%}", str(f.outcome.resizes), f"{f.jain:.4f}")
        table.add_row(f.name, f.policy, *figures, ends)
    for policy in policies:
        mine = [f for f in found if f.policy == policy]
        if len(mine) > 1:
            ratios = [f.ratio for f in mine]
            mean, resizes = sum(ratios) / len(mine), sum(f.outcome.resizes for f in mine) / len(mine)
            table.add_row("mean", policy, "", f"{mean:.3f}", "", f"{resizes:.0f}", "", f"worst {max(ratios):.3f}", style="bold")
    Console(width=None if Console().is_terminal else 160, highlight=False).print(table)
