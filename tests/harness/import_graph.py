"""The import graph of the house: rooms, floors, circles, imports upwards, files in a folder. `bin/check --graph` prints it.

A *room* is a child of `supervisor`, `engines` or `trainers` (a folder or a single file), or the client. The *floor* of a room is the length of the
longest chain of imports below it. An import is *upwards* when a layers contract of pyproject.toml forbids it. What a contract's `ignore_imports` lists
is reported as *open*: it is no circle and no import upwards, but the house is not finished while the list has an entry.
"""

import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import grimp

CHECKOUT: Final = Path(__file__).resolve().parents[2]
ROOTS: Final = ("supervisor", "engines", "trainers", "trainshed")
FOLDERS: Final = ("supervisor", "engines", "trainers", "bench")
MOST_FILES: Final = 15
"""Python files of one folder, `__init__` not counted."""

Edges = dict[str, set[str]]


def contracts() -> list[dict[str, Any]]:
    """Return the import contracts of pyproject.toml, as they stand there."""
    with (CHECKOUT / "pyproject.toml").open("rb") as file:
        found: list[dict[str, Any]] = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return found


def build() -> grimp.ImportGraph:
    """Build the graph of our packages and of what they import from elsewhere."""
    return grimp.build_graph(*ROOTS, include_external_packages=True, cache_dir=None)


def files_of_folders() -> dict[str, int]:
    """Count the Python files of each folder, without `__init__`."""
    counts: dict[str, int] = {}
    for root in FOLDERS:
        for path in (CHECKOUT / root).rglob("*.py"):
            if path.name != "__init__.py":
                folder = str(path.parent.relative_to(CHECKOUT))
                counts[folder] = counts.get(folder, 0) + 1
    return counts


@dataclass(frozen=True)
class House:
    """What the graph says. All names are dotted modules or folders."""

    rooms: Edges
    """Which rooms a room imports."""
    files: dict[str, int]
    inner: dict[str, Edges]
    """Of each package: which of its children a child imports."""
    circles: list[tuple[str, list[str]]]
    """A package, and children of it that import each other."""
    upwards: list[str]
    open_imports: list[str]

    @property
    def too_full(self) -> list[str]:
        return [f"{folder}: {count} files" for folder, count in sorted(self.files.items()) if count > MOST_FILES]

    @property
    def is_sound(self) -> bool:
        return not (self.circles or self.upwards or self.open_imports or self.too_full)


def survey(graph: grimp.ImportGraph) -> House:
    """Measure the house. The graph is left as it was."""
    ours = sorted(module for module in graph.modules if module.split(".")[0] in ROOTS)
    imports = [
        (module, other)
        for module in ours
        for other in sorted(graph.find_modules_directly_imported_by(module))
        if other.split(".")[0] in ROOTS
    ]
    ignored = {pattern for contract in contracts() for pattern in contract.get("ignore_imports", ())}
    is_open = {pair: any(_matches(pair, pattern) for pattern in ignored) for pair in imports}
    closed = [pair for pair in imports if not is_open[pair]]
    packages = [module for module in ours if graph.find_children(module)]
    inner = {package: _between_children(package, graph.find_children(package), closed) for package in packages}
    return House(
        rooms=_between_rooms(ours, closed),
        files=files_of_folders(),
        inner=inner,
        circles=[(package, circle) for package, edges in inner.items() for circle in circles(edges)],
        upwards=_upwards(closed),
        open_imports=[f"{importer} -> {imported}" for (importer, imported), is_it in is_open.items() if is_it],
    )


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node, each sorted."""
    below = {node: _reachable(edges, node) for node in edges}
    together = {tuple(sorted(other for other in edges if other in below[node] and node in below[other])) for node in edges}
    return [list(circle) for circle in sorted(together) if len(circle) > 1]


def floors(edges: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the floor of each node; nodes of one circle share a floor."""
    below = {node: _reachable(edges, node) for node in edges}
    floor: dict[str, int] = {}
    for node in sorted(edges, key=lambda node: len(below[node])):
        floor[node] = max(
            (floor.get(other, 0) + 1 for other in below[node] if node not in below.get(other, set()) and other != node), default=0
        )
    return floor


def _matches(pair: tuple[str, str], pattern: str) -> bool:
    """Say whether `a.* -> b.**` of a contract names the import. One star is one name, two are one or more."""
    return all(
        fnmatchcase(module, part.strip()) and ("**" in part or module.count(".") == part.count("."))
        for module, part in zip(pair, pattern.split("->"), strict=True)
    )


def _reachable(edges: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for other in edges.get(waiting.pop(), set()) - seen:
            seen.add(other)
            waiting.append(other)
    return seen


def _between_children(package: str, children: Iterable[str], imports: list[tuple[str, str]]) -> Edges:
    depth = package.count(".") + 2
    edges: Edges = {child: set() for child in children}
    for importer, imported in imports:
        one, other = ".".join(importer.split(".")[:depth]), ".".join(imported.split(".")[:depth])
        if one != other and one in edges and other in edges:
            edges[one].add(other)
    return edges


def _between_rooms(modules: Iterable[str], imports: list[tuple[str, str]]) -> Edges:
    def room(module: str) -> str:
        return "trainshed" if module.split(".")[0] == "trainshed" else ".".join(module.split(".")[:2])

    edges: Edges = {room(module): set() for module in modules if module not in ROOTS or module == "trainshed"}
    for importer, imported in imports:
        one, other = room(importer), room(imported)
        if one != other and one in edges and other in edges:
            edges[one].add(other)
    return edges


def _upwards(imports: list[tuple[str, str]]) -> list[str]:
    found = []
    for contract in contracts():
        if contract["type"] != "layers":
            continue
        for container in contract.get("containers", [""]):
            place: dict[str, tuple[int, int, bool]] = {}
            for level, layer in enumerate(contract["layers"]):
                apart = "|" in layer
                for number, name in enumerate(layer.replace(":", "|").split("|")):
                    place[f"{container}.{name.strip(' ()')}".strip(".")] = (level, number, apart)
            depth = container.count(".") + 2 if container else 1
            for importer, imported in imports:
                one, other = (place.get(".".join(module.split(".")[:depth])) for module in (importer, imported))
                if one and other and (one[0] > other[0] or (one[0] == other[0] and one[1] != other[1] and one[2])):
                    found.append(f"{importer} -> {imported} ({contract['name']})")
    return found


def _print(house: House) -> None:
    floor = floors(house.rooms)
    print(f"{len(house.rooms)} rooms on {max(floor.values()) + 1} floors, {sum(map(len, house.rooms.values()))} arrows\n")
    print(f"{'floor':>5}  {'room':24}imports")
    for room in sorted(house.rooms, key=lambda room: (-floor[room], room)):
        print(f"{floor[room]:>5}  {room:24}{' '.join(sorted(house.rooms[room]))}")
    print(f"\n{'files':>5}  {'folder':32}floors  arrows inside")
    for folder, count in sorted(house.files.items()):
        edges = house.inner.get(folder.replace("trainers/client/", "").replace("/", "."), {})
        levels = max(floors(edges).values(), default=0) + 1
        print(f"{count:>5}  {folder:32}{levels:>6}  {sum(map(len, edges.values())):>6}")
    print()
    for title, lines in (
        ("circles between siblings", [f"{package}: {', '.join(circle)}" for package, circle in house.circles]),
        ("imports upwards", house.upwards),
        ("imports that are still open (ignore_imports)", house.open_imports),
        (f"folders of more than {MOST_FILES} files", house.too_full),
    ):
        print(f"{title}: {len(lines) or 'none'}")
        for line in lines:
            print(f"    {line}")


def main() -> int:
    """Print the house; return 1 when something in it is not as the contracts say."""
    house = survey(build())
    _print(house)
    return 0 if house.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
