"""Continuous batching as pure bookkeeping: who sits where, what is fed, what ends, and what a retraction keeps."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from engines.embedded.batching import Batch, Request, Sampling
from engines.embedded.sampling import Draw, Known


def _decode(tokens: Sequence[int]) -> str:
    return "".join(chr(97 + token % 26) for token in tokens)


def _request(rid: str, prompt: Sequence[int] = (1, 2, 3), **options: object) -> Request:
    logprobs_from = options.pop("logprobs_from", -1)
    sampling = Sampling(**{"seed": 5, "max_new_tokens": 4, **options})  # type: ignore[arg-type]
    return Request(rid, tuple(prompt), sampling, logprobs_from=logprobs_from)  # type: ignore[arg-type]


def _step(batch: Batch, token: int = 7, version: str = "0") -> list[Request]:
    feeds = batch.feeds()
    count = len(batch.slots)
    return batch.took(feeds, [token] * count, [-0.5] * count, version)


def _run(batch: Batch, token: int = 7, version: str = "0") -> list[Request]:
    ended: list[Request] = []
    for _ in range(1000):
        if not batch.busy:
            return ended
        ended += _step(batch, token, version)
    raise AssertionError("the batch does not end")


def test_a_prompt_is_replayed_and_only_its_last_token_draws() -> None:
    batch = Batch(4, _decode)
    batch.add(_request("a", (11, 12, 13)))
    rows = []
    for _ in range(3):
        (feed,) = batch.feeds()
        rows.append((feed.token, feed.position, feed.row is None))
        batch.took([feed], [9] * 4, [-1.0] * 4, "0")
    assert rows == [(11, 0, True), (12, 1, True), (13, 2, False)]
    (feed,) = batch.feeds()
    assert (feed.token, feed.position) == (9, 3)
    assert isinstance(feed.row, Draw)
    assert feed.row.position == 4


def test_the_draw_position_is_the_tokens_index_in_prompt_and_output() -> None:
    whole, rest = Batch(4, _decode), Batch(4, _decode)
    whole.add(_request("a", (1, 2), max_new_tokens=5))
    positions = []
    while whole.busy:
        (feed,) = whole.feeds()
        if isinstance(feed.row, Draw):
            positions.append(feed.row.position)
        whole.took([feed], [3] * 4, [-1.0] * 4, "0")
    assert positions == [2, 3, 4, 5, 6]
    rest.add(_request("b", (1, 2, 3, 3), max_new_tokens=3))
    _step(rest), _step(rest), _step(rest)
    (feed,) = rest.feeds()
    assert isinstance(feed.row, Draw)
    assert feed.row.position == 4


def test_the_queue_is_served_in_order_and_slots_are_cleared_for_newcomers() -> None:
    batch = Batch(4, _decode)
    for index in range(6):
        batch.add(_request(f"r{index}", (1,), max_new_tokens=1 + index))
    batch.feeds()
    assert [request.rid for request in batch.running] == ["r0", "r1", "r2", "r3"]
    assert batch.fresh == [0, 1, 2, 3]
    batch.fresh.clear()
    assert [request.rid for request in _step(batch)] == ["r0"]
    batch.feeds()
    assert batch.slots[0] is not None
    assert batch.slots[0].rid == "r4"
    assert batch.fresh == [0]
    assert {request.rid for request in _run(batch)} == {"r1", "r2", "r3", "r4", "r5"}


def test_endings() -> None:
    batch = Batch(4, _decode)
    batch.add(_request("length", max_new_tokens=2))
    batch.add(_request("eos", stop_tokens=frozenset({7})))
    batch.add(_request("ignored", stop_tokens=frozenset({7}), ignore_eos=True))
    batch.add(_request("string", stop=("hh",)))
    ends = {request.rid: request.finish for request in _run(batch, token=7)}
    assert ends == {
        "length": {"type": "length", "length": 2},
        "eos": {"type": "stop", "matched": 7},
        "ignored": {"type": "length", "length": 4},
        "string": {"type": "stop", "matched": "hh"},
    }


def test_min_new_tokens_bans_what_would_stop() -> None:
    batch = Batch(4, _decode)
    batch.add(_request("a", (1,), min_new_tokens=1, stop_tokens=frozenset({7, 2})))
    (feed,) = batch.feeds()
    assert isinstance(feed.row, Draw)
    assert feed.row.banned == (2, 7)
    batch.took([feed], [3] * 4, [-1.0] * 4, "0")
    (feed,) = batch.feeds()
    assert isinstance(feed.row, Draw)
    assert feed.row.banned == ()


def test_logits_that_are_not_finite_end_the_request_as_an_error() -> None:
    batch = Batch(4, _decode)
    batch.add(_request("a", (1,)))
    feeds = batch.feeds()
    (ended,) = batch.took(feeds, [3] * 4, [float("nan")] * 4, "0")
    assert ended.finish is not None
    assert ended.finish["status_code"] == 500


def test_prompt_logprobs_are_taken_where_asked() -> None:
    batch = Batch(4, _decode)
    batch.add(_request("a", (1, 2, 3, 4), max_new_tokens=1, logprobs_from=2))
    kinds = []
    while batch.busy:
        (feed,) = batch.feeds()
        kinds.append(type(feed.row))
        batch.took([feed], [3] * 4, [-1.0 - feed.position] * 4, "0")
        request = feed.request
    assert kinds == [type(None), Known, Known, Draw]
    assert request.prompt_logprobs == {2: -2.0, 3: -3.0}


def test_abort_returns_what_there_is_running_and_waiting() -> None:
    batch = Batch(4, _decode)
    for index in range(5):
        batch.add(_request(f"x{index}" if index else "y", (1,)))
    _step(batch)
    ended = batch.abort(lambda rid: rid.startswith("x"))
    assert [(request.rid, len(request.output)) for request in ended] == [("x1", 1), ("x2", 1), ("x3", 1), ("x4", 0)]
    assert [request.finish["message"] for request in ended if request.finish] == ["Aborted"] * 3 + ["Abort in waiting queue"]
    assert [request.rid for request in _run(batch)] == ["y"]


def test_a_retraction_keeps_tokens_and_order_and_versions_make_spans() -> None:
    batch = Batch(4, _decode)
    for index in range(5):
        batch.add(_request(f"r{index}", (1,)))
    _step(batch, version="0"), _step(batch, version="0")
    assert batch.retract() == 4
    assert [request.rid for request in batch.waiting] == ["r0", "r1", "r2", "r3", "r4"]
    assert [len(request.output) for request in batch.waiting] == [2, 2, 2, 2, 0]
    ended = {request.rid: request for request in _run(batch, version="1")}
    assert [(span.version, span.start, span.end) for span in ended["r0"].spans] == [("0", 0, 2), ("1", 2, 4)]
    assert ended["r0"].retractions == 1
    assert [(span.version, span.start, span.end) for span in ended["r4"].spans] == [("1", 0, 4)]


@given(
    prompts=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=12),
    acts=st.lists(st.sampled_from(["step", "step", "step", "retract", "abort"]), max_size=40),
)
def test_whatever_happens_each_request_ends_once_and_nothing_is_left(prompts: list[list[int]], acts: list[str]) -> None:
    batch = Batch(4, _decode)
    for index, prompt in enumerate(prompts):
        batch.add(_request(str(index), prompt))
    ended: list[Request] = []
    for number, act in enumerate(acts):
        if act == "retract":
            batch.retract()
        elif act == "abort":
            ended += batch.abort(lambda rid, number=number: rid == str(number % 12))  # type: ignore[misc]
        else:
            ended += _step(batch)
    ended += _run(batch)
    assert sorted(request.rid for request in ended) == sorted(str(index) for index in range(len(prompts)))
    assert all(len(request.output) == 4 or (request.finish and request.finish["type"] == "abort") for request in ended)
    assert all(len(request.output) == len(request.logprobs) for request in ended)
