"""Each import contract of pyproject.toml fails when it is broken, none leaves a package out, and the graph that `bin/check --graph` prints is sound."""

from copy import deepcopy
from typing import Any

import grimp
import pytest
from importlinter import Contract, configuration
from importlinter.contracts.acyclic_siblings import AcyclicSiblingsContract
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract
from importlinter.contracts.protected import ProtectedContract

from tests.harness import import_graph

KINDS: dict[str, type[Contract]] = {
    "layers": LayersContract,
    "forbidden": ForbiddenContract,
    "protected": ProtectedContract,
    "acyclic_siblings": AcyclicSiblingsContract,
}
configuration.configure()
CONTRACTS = {contract["name"]: contract for contract in import_graph.contracts()}
PLANTS = {
    "The house": [("trainers.grpo.train", "engines.control"), ("engines.control", "supervisor.errors"), ("trainshed", "trainers.weights")],
    "The supervisor's rooms": [
        ("supervisor.host.disk", "supervisor.scheduler.spec"),
        ("supervisor.host.processes.child", "supervisor.config.load"),
        ("supervisor.views.status", "supervisor.runtime.run"),
        ("supervisor.scheduler.leases", "supervisor.simulate.planner_cases"),
        ("supervisor.runtime.run", "supervisor.cli.run"),
        ("supervisor.errors", "supervisor.host.disk"),
    ],
    "Views know no host": [("supervisor.views.status", "supervisor.host.processes.proc")],
    "The configuration": [
        ("supervisor.config.schema.tables", "supervisor.config.load"),
        ("supervisor.config.machine.programs", "supervisor.config.fit"),
    ],
    "The host": [("supervisor.host.gpus.nvml", "supervisor.host.foreign"), ("supervisor.host.disk", "supervisor.host.ports")],
    "The scheduler": [
        ("supervisor.scheduler.planning.planner", "supervisor.scheduler.groups.trainers"),
        ("supervisor.scheduler.groups.trainers", "supervisor.scheduler.operators"),
        ("supervisor.scheduler.records", "supervisor.scheduler.context"),
    ],
    "The run": [
        ("supervisor.runtime.kinds.sglang", "supervisor.runtime.engines"),
        ("supervisor.runtime.driver", "supervisor.runtime.perform"),
        ("supervisor.runtime.gateways", "supervisor.runtime.ranks"),
    ],
    "The history": [("supervisor.history.fold", "supervisor.history.changes"), ("supervisor.history.facts", "supervisor.history.lanes")],
    "The views": [("supervisor.views.table", "supervisor.views.history.screen")],
    "Faces of the history": [("supervisor.views.history.screen", "supervisor.views.history.trace")],
    "The simulator": [("supervisor.simulate.faults.world", "supervisor.simulate.workloads.box")],
    "Engines: gateway, embedded": [("engines.gateway.shell", "engines.embedded.core"), ("engines.embedded.server", "engines.control")],
    "The gateway: routes": [
        ("engines.gateway.core.dispatch", "engines.gateway.upstream.sglang_stream"),
        ("engines.gateway.shell", "engines.gateway.control_channel"),
    ],
    "The gateway's routes": [
        ("engines.gateway.routes.text", "engines.gateway.routes.agents.chat_bodies"),
        ("engines.gateway.routes.openai_answers", "engines.gateway.routes.about.model_routes"),
    ],
    "The gateway's core": [("engines.gateway.core.records", "engines.gateway.core.ordering.order")],
    "Trainers above": [("trainers.protocol.ids", "trainers.weights"), ("trainers.rewards", "trainers.grpo.tasks")],
    "Engines know of trainers": [("engines.control", "trainers.weights")],
    "The client": [
        ("supervisor.runtime.ranks", "trainshed"),
        ("engines.gateway.shell", "trainshed"),
        ("trainers.protocol.ids", "trainshed"),
    ],
    "No circles": [("supervisor.views.table", "supervisor.views.status"), ("engines.gateway.core.samples", "engines.gateway.core.records")],
    "PURE": [
        ("supervisor.scheduler.leases", "time"),
        ("engines.gateway.core.records", "asyncio"),
        ("engines.lifecycle.health", "random"),
        ("engines.sglang.command", "os"),
        ("trainers.protocol.framing", "socket"),
        ("supervisor.config.schema.tables", "logging"),
        ("supervisor.history.fold", "time"),
        ("supervisor.scheduler.spec", "trainers.weights"),  # it imports `os`
    ],
    "Supervisor, gateway and verifiers": [
        ("supervisor.observe.status", "torch"),
        ("trainers.rewards", "transformers"),
        ("engines.control", "torch"),
    ],
}
"""Of each contract (by the beginning of its name): imports that must break it, each for itself."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return import_graph.build()


def named(beginning: str) -> dict[str, Any]:
    (found,) = [contract for name, contract in CONTRACTS.items() if name.startswith(beginning)]
    return found


def kept(graph: grimp.ImportGraph, options: dict[str, Any]) -> bool:
    session = {"root_packages": list(import_graph.ROOTS), "include_external_packages": "true"}
    as_read = {key: str(value) if isinstance(value, bool) else value for key, value in options.items()}
    return KINDS[options["type"]](options["name"], session, as_read).check(graph, verbose=False).kept


@pytest.mark.parametrize("name", CONTRACTS)
def test_each_contract_is_kept(graph: grimp.ImportGraph, name: str) -> None:
    assert kept(deepcopy(graph), CONTRACTS[name])


@pytest.mark.parametrize(("beginning", "plant"), [(name, plant) for name, plants in PLANTS.items() for plant in plants])
def test_each_contract_fails_when_broken(graph: grimp.ImportGraph, beginning: str, plant: tuple[str, str]) -> None:
    broken = deepcopy(graph)
    importer, imported = plant
    if imported.split(".")[0] not in import_graph.ROOTS and imported not in broken.modules:
        broken.add_module(imported, is_squashed=True)  # nobody imports it today
    assert {importer, imported} <= broken.modules, "the plant names a module that is not there"
    assert not broken.direct_import_exists(importer=importer, imported=imported)
    broken.add_import(importer=importer, imported=imported)
    assert not kept(broken, named(beginning))


def test_each_contract_has_a_plant() -> None:
    assert {named(beginning)["name"] for beginning in PLANTS} == set(CONTRACTS)


@pytest.mark.parametrize("name", [name for name, contract in CONTRACTS.items() if contract.get("exhaustive")])
def test_a_new_room_breaks_an_exhaustive_contract(graph: grimp.ImportGraph, name: str) -> None:
    (container,) = CONTRACTS[name]["containers"]
    broken = deepcopy(graph)
    broken.add_module(f"{container}.attic")
    assert not kept(broken, CONTRACTS[name])


def test_every_package_is_in_a_contract(graph: grimp.ImportGraph) -> None:
    """A package is held by an exhaustive contract of its parent, or is named in a layers or forbidden contract; the roots are layers themselves."""
    exhaustive = {container for contract in CONTRACTS.values() if contract.get("exhaustive") for container in contract["containers"]}
    layers = {
        f"{container}.{name.strip(' ()')}"
        for contract in CONTRACTS.values()
        for container in contract.get("containers", ())
        for layer in contract.get("layers", ())
        for name in layer.split("|")
    }
    packages = {module for module in graph.modules if module.split(".")[0] in import_graph.ROOTS and graph.find_children(module)}
    left_out = {
        package for package in packages - set(import_graph.ROOTS) if package.rpartition(".")[0] not in exhaustive and package not in layers
    }
    assert not left_out


def test_the_graph_has_no_circle_and_no_import_upwards(graph: grimp.ImportGraph) -> None:
    house = import_graph.survey(graph)
    assert not house.circles
    assert not house.upwards


def test_the_graph_command_sees_a_circle_and_an_import_upwards(graph: grimp.ImportGraph) -> None:
    broken = deepcopy(graph)
    broken.add_import(importer="supervisor.errors", imported="supervisor.cli.main")
    house = import_graph.survey(broken)
    assert not house.is_sound
    assert any(package == "supervisor" and "supervisor.errors" in circle for package, circle in house.circles)
    assert any(line.startswith("supervisor.errors -> supervisor.cli.main") for line in house.upwards)
