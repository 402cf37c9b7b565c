"""Seeds of the whole-system simulation with faults: the production scheduler against fakes that answer late, twice, never, or die.

    bin/check --long simulation [EVENTS [FIRST_SEED]]     until so many events (default 5,000,000)
    bin/check --long simulation --seed BOX:SEED            one of them again

A seed that fails is printed and kept in tests/simulation/seeds.txt.
"""

import sys
import time

from _campaign import CHECKOUT, commit

sys.path.insert(0, str(CHECKOUT / "tests" / "simulation"))
from boxes import BOXES, FAULTS

from supervisor.simulate.world import World


def play(box: str, seed: int) -> int:
    """Raises when a promise is broken. Returns the number of events."""
    world = World(BOXES[box](), seed, steps=3, faults=FAULTS)
    world.run()
    return world.events


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--seed"]:
        box, _, seed = arguments[1].partition(":")
        print(f"{play(box, int(seed))} events, no violation")
        return 0
    wanted = int(arguments[0].replace(",", "")) if arguments else 5_000_000
    seed = int(arguments[1]) if len(arguments) > 1 else 0
    events = seeds = failed = 0
    began = time.monotonic()
    while events < wanted:
        for box in BOXES:
            try:
                events += play(box, seed)
            except AssertionError as error:
                failed += 1
                print(f"{box}:{seed} {type(error).__name__}: {error}", flush=True)
                with open(CHECKOUT / "tests" / "simulation" / "seeds.txt", "a") as file:
                    file.write(f"{box}:{seed}\n")
            seeds += 1
        seed += 1
        if seed % 100 == 0:
            print(f"{seeds} worlds, {events} events, {failed} failed, {events / (time.monotonic() - began):.0f} events/s", flush=True)
    print(f"simulation: {events} events in {seeds} worlds, {failed} failed, at {commit()}, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
