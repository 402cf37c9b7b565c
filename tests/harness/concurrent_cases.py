"""Cases that mostly wait, several at a time: begun before their turn, in threads, each with a folder of its own; a test then takes its result."""

import inspect
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

AT_ONCE = 4
Run = Callable[[Callable[..., None], dict[str, Any], Path], None]


class Stage:
    """All chosen cases of a module. `run` carries one out: the case, its parameters, and an empty folder."""

    def __init__(self, items: list[pytest.Function], run: Run, folder: Path) -> None:
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._run, self._folder = run, folder
        self._results: dict[str, Future[None]] = {}
        for item in items:
            case = getattr(item.function, "case", None)
            if case is not None:
                self._results[item.nodeid] = self._begin(item, case)

    def _begin(self, item: pytest.Function, case: Callable[..., None]) -> "Future[None]":
        parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        return self._pool.submit(self._run, case, parameters, Path(tempfile.mkdtemp(dir=self._folder)))

    def take(self, item: pytest.Function) -> None:
        """Raises what the case raised. A result is taken once: who asks again (a rerun) has the case played again."""
        future = self._results.pop(item.nodeid, None)
        (future or self._begin(item, item.function.case)).result()

    def close(self) -> None:
        """Those that have not begun never will."""
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def stage_of(request: pytest.FixtureRequest, run: Run, folder: Path) -> Iterator[Stage]:
    """For a fixture of module scope."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.module is request.module]
    stage = Stage(items, run, folder)
    try:
        yield stage
    finally:
        stage.close()


def beside(case: Callable[..., None]) -> Callable[..., None]:
    """This case may run while others do. Its first parameter is what `run` gives it, the others are pytest's parameters."""

    def test(stage: Stage, request: pytest.FixtureRequest, **_: object) -> None:
        stage.take(request.node)

    parameters = list(inspect.signature(case).parameters.values())[1:]
    given = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("stage", "request")]
    test.__signature__ = inspect.Signature([*given, *parameters])  # type: ignore[attr-defined]
    test.__name__, test.__doc__, test.__module__, test.__qualname__ = case.__name__, case.__doc__, case.__module__, case.__qualname__
    test.case = case  # type: ignore[attr-defined]
    return test
