"""A campaign: many cases, each written down when it is done, so that an interrupted one goes on where it was."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
RESULTS = CHECKOUT / "runs" / "campaigns"


def commit() -> str:
    """The commit that is checked out, with a mark when the tree differs from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def run(name: str, cases: Iterable[str], case: Callable[[str], dict[str, object]]) -> list[dict[str, object]]:
    """Every case that this commit has not done yet; `case` raises when a promise is broken. Returns all results, and prints each."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / f"{name}.jsonl"
    here = commit()
    results = [record for record in map(json.loads, file.read_text().splitlines()) if record["commit"] == here] if file.exists() else []
    done = {record["case"] for record in results}
    for id in cases:
        if id in done:
            continue
        began = time.monotonic()
        record = {"case": id, "commit": here, **case(id)}
        record["seconds"] = round(time.monotonic() - began, 2)
        with open(file, "a") as out:
            out.write(json.dumps(record) + "\n")
        results.append(record)
        print(json.dumps(record), flush=True)
    print(f"{name}: {len(results)} cases done at {here}", file=sys.stderr)
    return results
