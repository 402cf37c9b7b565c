"""Sessions keep to their engine while it is routable; prefixes are a preference among engines that are about equally busy."""

from array import array

from engines.gateway.core.dispatch import Dispatch
from engines.gateway.core.engines import Engines
from engines.gateway.core.events import Broken, Leave, Tick
from engines.gateway.core.ordering import affinity
from engines.gateway.core.ordering.affinity import BLOCK, MAX_BLOCKS, Affinity
from engines.gateway.core.records import Phase, Rollout, Sample
from engines.gateway.core.samples import TOKENS, Request, SampleKey
from tests.harness.dispatch_driver import ABORTED, DispatchDriver, request
from trainers.protocol import gateway_messages


def where(driver: DispatchDriver) -> dict[int, int]:
    """Engine by first token of the prompt."""
    return {start.body["input_ids"][0]: start.engine for start in driver.running.values()}


def attempt_of(driver: DispatchDriver, prompt: int) -> int:
    return next(number for number, start in driver.running.items() if start.body["input_ids"][0] == prompt)


def finish(driver: DispatchDriver, prompt: int) -> None:
    attempt = attempt_of(driver, prompt)
    driver.make(attempt, 5, 6, 7, 8)
    driver.end(attempt)


def test_a_session_keeps_to_its_engine_even_when_another_has_less_to_do() -> None:
    driver = DispatchDriver()
    driver.open()
    driver.route(0, slots=4)
    driver.route(1, slots=4)
    driver.ask(0, "1", wants=request(1, session="a"))
    driver.ask(0, "2", wants=request(2, session="b"))
    assert where(driver) == {1: 0, 2: 1}
    for prompt in (3, 4, 5):
        driver.ask(0, str(prompt), wants=request(prompt, session="a"))
    assert where(driver) == {1: 0, 2: 1, 3: 0, 4: 0, 5: 0}
    driver.ask(0, "6", wants=request(6))
    assert where(driver)[6] == 1, "without a session the least busy one"


def test_a_session_waits_for_room_on_its_engine_and_holds_up_nobody_else() -> None:
    driver = DispatchDriver()
    driver.open()
    driver.route(0, slots=1)
    driver.route(1, slots=1)
    driver.ask(0, "1", wants=request(1, session="a"))
    for prompt in (2, 3):
        driver.ask(0, str(prompt), wants=request(prompt, session="a"))
    driver.ask(0, "4", wants=request(4))
    assert where(driver) == {1: 0, 4: 1}
    assert driver.progress() == {0: (2, 2, 0)}
    driver.ask(0, "5", wants=request(5))
    finish(driver, 4)
    assert where(driver) == {1: 0, 5: 1}
    finish(driver, 1)
    assert where(driver) == {2: 0, 5: 1}
    finish(driver, 2)
    assert where(driver) == {3: 0, 5: 1}


def test_a_session_moves_when_its_engine_is_not_routable_and_stays_where_it_went() -> None:
    driver = DispatchDriver()
    driver.open()
    driver.route(0, slots=2)
    driver.route(1, slots=1)
    for prompt in (1, 2, 3):
        driver.ask(0, str(prompt), wants=request(prompt, session="a"))
    assert where(driver) == {1: 0, 2: 0}
    drained = driver.drain(0)
    assert where(driver)[3] == 1, "what waited for it need not wait any more"
    for prompt in (1, 2):
        driver.end(attempt_of(driver, prompt), ABORTED)
    assert drained in driver.done
    assert where(driver) == {3: 1}
    driver.route(0, slots=2)
    assert where(driver) == {3: 1}, "the session lives on engine 1 now, and waits for it"
    for prompt in (3, 1, 2):
        assert where(driver) == {prompt: 1}
        finish(driver, prompt)
    assert len(driver.outcomes) == 3


def test_a_session_waits_while_its_engine_rests_after_a_failure() -> None:
    driver = DispatchDriver()
    driver.open()
    driver.route(0, slots=2)
    driver.route(1, slots=2)
    driver.ask(0, "1", wants=request(1, session="a"))
    driver.end(attempt_of(driver, 1), Broken("reset", accepted=False))
    assert not driver.running
    assert driver.core.deadline is not None
    driver.now = driver.core.deadline
    driver.tell(Tick())
    assert where(driver) == {1: 0}


def test_pins_die_with_the_incarnation() -> None:
    driver = DispatchDriver()
    driver.open()
    driver.route(0, slots=2)
    driver.ask(0, "1", wants=request(1, session="a"))
    finish(driver, 1)
    driver.lost(0)
    driver.route(0, incarnation=2, slots=2)
    driver.route(1, slots=4)
    driver.ask(0, "2", wants=request(2))
    assert where(driver) == {2: 0}
    driver.ask(0, "3", wants=request(3, session="a"))
    assert where(driver)[3] == 1, "the new life of engine 0 knows nothing of the session"


def test_a_session_that_waits_goes_with_its_client_and_its_rollout() -> None:
    driver = DispatchDriver()
    driver.open()
    driver.route(0, slots=1)
    driver.ask(0, "1", wants=request(1, session="a"))
    gone = driver.ask(0, "2", wants=request(2, session="a"))
    driver.ask(0, "3", wants=request(3, session="a"))
    driver.tell(Leave(gone))
    finish(driver, 1)
    assert where(driver) == {3: 0}
    driver.ask(0, "4", wants=request(4, session="a"))
    driver.close()
    driver.end(attempt_of(driver, 3), ABORTED)
    assert not driver.running


def test_memory_of_sessions_and_prefixes_is_bounded() -> None:
    engines = Engines()
    engines.route(gateway_messages.Route(order=1, engine=0, incarnation=1, url="u", key="k", slots=4, version=0))
    engine = engines.get(0)
    assert engine is not None
    places: affinity._Places[int] = affinity._Places(3)
    for key in (1, 2, 3, 1, 4):
        places.keep(key, engine)
    assert len(places) == 3
    assert [places.find(key, engines) is engine for key in (1, 2, 3, 4)] == [True, False, True, True]


def sample(tokens: list[int]) -> Sample:
    rollout = Rollout(number=0, serial=1, phase=Phase.OPEN, since=0.0)
    return Sample(key=SampleKey(0, "0"), request=Request(array(TOKENS, tokens), {}, 4), rollout=rollout, serial=1)


def test_the_engine_with_the_longest_same_beginning_is_preferred_unless_it_is_busier() -> None:
    engines = Engines()
    for rank in range(3):
        engines.route(gateway_messages.Route(order=1, engine=rank, incarnation=1, url="u", key="k", slots=10, version=0))
    zero, one, two = (engines.get(rank) for rank in range(3))
    assert zero is not None
    assert one is not None
    assert two is not None
    common, mine = list(range(BLOCK)), list(range(2 * BLOCK + 5))
    places = Affinity(slack=0.2)
    places.sent(sample(mine), two)
    places.sent(sample([*common, 7]), one)
    assert places.preferred(sample([*mine, 1, 2, 3]), engines, zero, 0.0) is two, "two blocks are more than one"
    assert places.preferred(sample(mine), engines, zero, 0.0) is two
    assert places.preferred(sample([*common, 9, 9]), engines, zero, 0.0) is one, "who was sent it last"
    assert places.preferred(sample([9, 9]), engines, zero, 0.0) is zero
    two.running = 3
    assert places.preferred(sample(mine), engines, zero, 0.0) is one, "two is too busy; one knows the first block"
    one.running = 3
    assert places.preferred(sample(mine), engines, zero, 0.0) is zero
    zero.running = 1
    assert places.preferred(sample(mine), engines, zero, 0.0) is two
    assert Affinity().preferred(sample(mine), engines, zero, 0.0) is zero, "off by default"


def test_very_long_prompts_are_compared_as_far_as_it_goes() -> None:
    tokens = list(range(BLOCK * (MAX_BLOCKS + 10)))
    keys = list(affinity._prefixes_of(sample(tokens)))
    assert len(keys) == MAX_BLOCKS + 1
    assert keys[:-1] == list(affinity._prefixes_of(sample([*tokens, 1])))[:-1]
    assert keys[-1] != list(affinity._prefixes_of(sample([*tokens, 1])))[-1]
    assert len(set(keys)) == len(keys)


def test_groups_gather_with_prefix_affinity() -> None:
    def engines_a_group(slack: float | None) -> int:
        driver = DispatchDriver(Dispatch(prefix_slack=slack))
        driver.open(target=64)
        for rank in range(4):
            driver.route(rank, slots=16)
        for index in range(64):
            driver.ask(0, str(index), wants=request(index // 8))
        homes: dict[int, set[int]] = {}
        for start in driver.running.values():
            homes.setdefault(start.body["input_ids"][0], set()).add(start.engine)
        assert len(driver.running) == 64
        return sum(map(len, homes.values()))

    assert engines_a_group(None) == 32, "each group on every engine"
    assert engines_a_group(0.5) <= 10
