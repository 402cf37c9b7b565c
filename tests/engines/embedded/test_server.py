"""The embedded engine as a process: SGLang's dialect over HTTP, sleeping and waking measured from outside, its refusals and its deaths."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.harness.engine_process import KEY, EngineProcess, engine_process, tokens_and_logprobs
from trainers.protocol.child_env import OUR_PATH

LONG = {"max_new_tokens": 60, "sampling_seed": 4, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine_process(tiny, tmp_path_factory.mktemp("log") / "engine.log") as engine:
        yield engine


@pytest.fixture
def doomed(tiny: Path, tmp_path: Path) -> Iterator[EngineProcess]:
    """An engine of one's own, to be killed or broken."""
    with engine_process(tiny, tmp_path / "engine.log", gpu="virtual:3") as engine:
        yield engine


def _paused(engine: EngineProcess, bodies: list[Any], mode: str = "retract") -> tuple[list[threading.Thread], dict[int, Any]]:
    """Requests that hang, because the engine is paused before them; and where their answers will be."""
    engine.post("/pause_generation", {"mode": mode})
    answers: dict[int, Any] = {}

    def ask(index: int, body: Any) -> None:
        answers[index] = engine.call("POST", "/generate", body)

    threads = [threading.Thread(target=ask, args=entry) for entry in enumerate(bodies)]
    for thread in threads:
        thread.start()
    return threads, answers


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _state(engine: EngineProcess) -> Any:
    return engine.get("/server_info")["internal_states"][0]


def _slowed(engine: EngineProcess, count: int) -> tuple[list[threading.Thread], list[Any]]:
    """Requests that are running, and stand still (`in_place`); where their answers will be."""
    body = {"input_ids": [[7, index] for index in range(count)], "sampling_params": LONG, "return_logprob": True}
    answers: list[Any] = []

    def ask() -> None:
        with suppress(OSError):  # the engine may be killed under it
            answers.extend(engine.post("/generate", body))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    _wait(lambda: _state(engine)["num_running_reqs"] > 0)
    engine.post("/pause_generation", {"mode": "in_place"})
    assert _state(engine)["num_running_reqs"] > 0
    return threads, answers


def test_one_sample(engine: EngineProcess) -> None:
    answer = engine.generate([5, 6, 7], seed=3)
    meta = answer["meta_info"]
    assert len(answer["output_ids"]) == meta["completion_tokens"] == len(meta["output_token_logprobs"]) == 8
    assert [entry[1:] for entry in meta["output_token_logprobs"]] == [[token, None] for token in answer["output_ids"]]
    assert meta["finish_reason"] == {"type": "length", "length": 8}
    assert (meta["prompt_tokens"], meta["cached_tokens"], meta["weight_version"]) == (3, 0, "0")
    assert meta["weight_versions"] == [{"version": "0", "start": 0, "end": 8}]
    assert engine.generate([5, 6, 7], seed=3)["output_ids"] == answer["output_ids"]
    assert engine.generate([5, 6, 7], seed=4)["output_ids"] != answer["output_ids"]
    greedy = engine.post("/generate", {"text": "e:", "sampling_params": {"temperature": 0, "max_new_tokens": 4}})
    assert "output_token_logprobs" not in greedy["meta_info"]
    assert greedy["text"]


def test_a_stream_grows_and_ends_with_what_the_whole_answer_says(engine: EngineProcess) -> None:
    body = {"input_ids": [9, 9], "sampling_params": LONG, "return_logprob": True, "rid": "streamed"}
    chunks = list(engine.stream(body))
    whole = engine.post("/generate", body)
    assert chunks[-1] == whole
    assert whole["meta_info"]["id"] == "streamed"
    for before, after in itertools.pairwise(chunks):
        assert before["meta_info"]["finish_reason"] is None
        assert after["output_ids"][: len(before["output_ids"])] == before["output_ids"]


def test_a_batch_and_prompt_logprobs(engine: EngineProcess) -> None:
    params = [{"max_new_tokens": 2, "sampling_seed": 1}, {"max_new_tokens": 3, "sampling_seed": 2}]
    body = {"input_ids": [[3, 4, 5], [6]], "sampling_params": params, "return_logprob": True, "logprob_start_len": 0}
    first, second = engine.post("/generate", body)
    assert [len(first["output_ids"]), len(second["output_ids"])] == [2, 3]
    entries = first["meta_info"]["input_token_logprobs"]
    assert [entry[1] for entry in entries] == [3, 4, 5]
    assert entries[0][0] is None
    assert all(entry[0] < 0 for entry in entries[1:])
    chunks = list(engine.stream(body))
    assert {chunk["index"] for chunk in chunks} == {0, 1}


def test_stops(engine: EngineProcess) -> None:
    whole = engine.generate([5, 6], seed=8, most=20, ignore_eos=True)
    token = whole["output_ids"][3]
    cut = engine.generate([5, 6], seed=8, most=20, stop_token_ids=[token])
    at = whole["output_ids"].index(token)
    assert cut["output_ids"] == whole["output_ids"][: at + 1]
    assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": token}
    text = whole["text"]
    stopped = engine.generate([5, 6], seed=8, most=20, ignore_eos=True, stop=[text[2:4]])
    assert stopped["text"] == text[: text.index(text[2:4])]
    assert stopped["meta_info"]["finish_reason"] == {"type": "stop", "matched": text[2:4]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Either text or input_ids"),
        ({"input_ids": []}, "empty"),
        ({"input_ids": [64]}, "vocabulary"),
        ({"input_ids": [1] * 64}, "longer than"),
        ({"input_ids": [1], "sampling_params": {"max_new_tokens": 64}}, "maximum context length of 64 tokens"),
        ({"input_ids": [1], "sampling_params": {"max_new_tokens": 64}}, "`context` in [pipeline.engine]"),
        ({"input_ids": [1], "sampling_params": {"temperature": -1}}, "temperature"),
        ({"input_ids": [1], "sampling_params": {"regex": "a"}}, "regex"),
        ({"input_ids": [1], "sampling_params": {"no_such": 1}}, "no_such"),
        ({"input_ids": [1], "sampling_params": {"frequency_penalty": 1}}, "penalties"),
        ({"input_ids": [-1]}, "input_ids"),
        ({"input_ids": [[1], 2]}, "mixes"),
        ({"input_ids": [1], "top_logprobs_num": 2}, "top_logprobs_num"),
        ([], "the body is not"),
    ],
)
def test_bad_input_is_a_400_with_a_message(engine: EngineProcess, body: Any, message: str) -> None:
    status, answer = engine.call("POST", "/generate", body)
    assert status == 400
    assert message in answer["error"]["message"]


def test_openai_routes(engine: EngineProcess) -> None:
    import openai

    client = openai.OpenAI(base_url=engine.url + "/v1", api_key=KEY, max_retries=0)
    assert client.models.list().data[0].id
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "e"}]}, {"role": "user", "content": ":"}]
    asked: Any = {"model": "m", "messages": messages, "seed": 5, "max_tokens": 6}
    chat = client.chat.completions.create(**asked, n=2, logprobs=True)
    native = engine.post("/generate", {"text": "e:=", "sampling_params": {"max_new_tokens": 6, "sampling_seed": 5}, "return_logprob": True})
    assert chat.choices[0].message.content == native["text"]
    assert chat.choices[0].logprobs is not None
    assert [entry.logprob for entry in chat.choices[0].logprobs.content or ()] == tokens_and_logprobs(native)[1]
    assert chat.choices[1].message.content != native["text"]
    assert chat.usage is not None
    assert chat.usage.prompt_tokens == 6
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == native["text"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    plain = client.completions.create(model="m", prompt="e:=", seed=5, max_tokens=6, logprobs=0)
    assert plain.choices[0].text == native["text"]
    with pytest.raises(openai.BadRequestError, match="maximum context"):
        client.completions.create(model="m", prompt="e:=", max_tokens=600)


def test_only_who_has_the_key_is_served(engine: EngineProcess) -> None:
    key, engine.key = engine.key, "wrong"
    try:
        assert engine.call("GET", "/model_info") == (401, {"error": "Unauthorized"})
        assert engine.call("POST", "/generate", {"input_ids": [1]})[0] == 401
        assert engine.call("GET", "/health_generate")[0] == 401, "it computes a token"
        assert engine.call("GET", "/health")[0] == 200
    finally:
        engine.key = key
    assert engine.call("GET", "/no_such_route")[0] == 404


def test_information(engine: EngineProcess) -> None:
    info = engine.get("/server_info")
    assert info["version"] == "0.5.23"
    assert info["internal_states"][0]["num_running_reqs"] == 0
    assert engine.get("/get_model_info") == engine.get("/model_info")
    assert engine.get("/v1/loads?include=core")["loads"][0]["num_waiting_reqs"] == 0
    for path in ("/health", "/health_generate", "/ready", "/ping"):
        assert engine.call("GET", path)[0] == 200


def test_a_request_to_a_paused_engine_waits_and_abort_ends_what_runs(engine: EngineProcess) -> None:
    threads, answers = _paused(engine, [{"input_ids": [1], "rid": "late"}], mode="abort")
    assert engine.call("GET", "/ready")[0] == 503
    engine.post("/abort_request", {"rid": "late"})
    time.sleep(0.1)
    assert not answers
    engine.post("/continue_generation")
    threads[0].join(10)
    assert answers[0][1]["meta_info"]["finish_reason"]["type"] in ("length", "stop")

    threads, _ = _slowed(engine, 8)
    assert engine.call("POST", "/flush_cache")[0] == 400
    engine.post("/pause_generation", {"mode": "abort"}, timeout=5)
    assert engine.call("GET", "/flush_cache?timeout=2")[0] == 200
    assert _state(engine)["is_fully_idle"]
    engine.post("/continue_generation")
    for thread in threads:
        thread.join(10)


def test_an_aborted_request_brings_its_tokens(engine: EngineProcess) -> None:
    engine.post("/pause_generation", {"mode": "retract"})
    engine.post("/continue_generation")
    threads, _ = _slowed(engine, 4)
    engine.post("/continue_generation")
    chunks = engine.stream({"input_ids": [3], "sampling_params": LONG, "return_logprob": True, "rid": "mine"})
    engine.post("/abort_request", {"rid": "min"})
    *_, last = chunks
    assert last["meta_info"]["finish_reason"]["type"] in ("abort", "length")
    assert len(last["meta_info"]["output_token_logprobs"]) == len(last["output_ids"])
    for thread in threads:
        thread.join(10)


def test_new_weights_under_running_requests_make_a_second_span(engine: EngineProcess, tiny: Path, other: Path) -> None:
    threads, answers = _slowed(engine, 8)
    engine.post("/pause_generation", {"mode": "retract"})
    waiting = _state(engine)["num_waiting_reqs"]
    answer = engine.post("/update_weights_from_disk", {"model_path": str(other), "weight_version": "5", "flush_cache": False})
    assert answer == {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": waiting}
    assert engine.post("/flush_cache").startswith("Cache flushed")
    engine.post("/continue_generation")
    for thread in threads:
        thread.join(10)
    both = [answer for answer in answers if len(answer["meta_info"]["weight_versions"]) == 2]
    assert both
    for answer in both:
        first, second = answer["meta_info"]["weight_versions"]
        assert (first["version"], first["start"], second["version"], second["end"]) == ("0", 0, "5", 60)
        assert first["end"] == second["start"]
        assert answer["meta_info"]["num_retractions"] == 1
    assert engine.get("/model_info")["weight_version"] == "5"
    assert engine.get("/v1/models")["data"][0]["id"] == str(other)
    engine.post("/update_weights_from_disk", {"model_path": str(tiny), "weight_version": "0"})


def test_without_a_pause_an_update_waits_for_what_runs(engine: EngineProcess, tiny: Path) -> None:
    body = {"input_ids": [[5, index] for index in range(32)], "sampling_params": LONG, "return_logprob": False}
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.extend(engine.post("/generate", body)))
    thread.start()
    _wait(lambda: _state(engine)["num_running_reqs"] > 0)
    engine.post("/update_weights_from_disk", {"model_path": str(tiny), "weight_version": "0"})
    thread.join(10)
    assert all(answer["meta_info"]["completion_tokens"] == 60 for answer in answers)


def test_a_client_that_goes_away_has_its_request_aborted(engine: EngineProcess) -> None:
    code = (
        "import json, sys, urllib.request as u\n"
        "body = {'input_ids': [[1, i % 64] for i in range(1024)], 'sampling_params': {'max_new_tokens': 60, 'ignore_eos': True}}\n"
        f"r = u.Request(sys.argv[1] + '/generate', json.dumps(body).encode(), {{'Authorization': 'Bearer {KEY}'}})\n"
        "u.urlopen(r)"
    )
    client = subprocess.Popen([sys.executable, "-c", code, engine.url], stderr=subprocess.DEVNULL)
    _wait(lambda: _state(engine)["num_running_reqs"] > 0)
    client.kill()
    client.wait()
    assert engine.call("GET", "/flush_cache?timeout=1")[0] == 200


def test_sleeping_gives_memory_back_and_waking_reloads(doomed: EngineProcess, tiny: Path, other: Path) -> None:
    before = doomed.generate([4, 2], seed=9, most=12)
    awake = doomed.held(3)
    assert awake >= 8 << 20
    doomed.post("/pause_generation", {"mode": "abort"})
    assert doomed.get("/flush_cache?timeout=5").startswith("Cache flushed")
    assert doomed.post("/release_memory_occupation", {"tags": ["kv_cache", "weights", "cuda_graph"]}) is None
    assert doomed.held(3) == 0
    assert doomed.get("/model_info")["weight_version"] == "0"
    assert _state(doomed)["released"] == ["cuda_graph", "kv_cache", "weights"]
    assert doomed.held(3) == 0
    assert doomed.post("/resume_memory_occupation", {"tags": ["weights"]}) is None
    assert 0 <= doomed.held(3) < 2 << 20
    doomed.post("/update_weights_from_disk", {"model_path": str(tiny), "weight_version": "7", "flush_cache": False})
    doomed.post("/resume_memory_occupation", {"tags": ["kv_cache", "cuda_graph"]})
    doomed.post("/continue_generation")
    assert doomed.held(3) == awake
    after = doomed.generate([4, 2], seed=9, most=12)
    assert tokens_and_logprobs(after) == tokens_and_logprobs(before)
    assert after["meta_info"]["weight_version"] == "7"
    log = doomed.log.read_text()
    assert all(line in log for line in ("ready: ", "paused: abort", "released: kv_cache, weights, cuda_graph", "loaded: version 7"))


def test_tokens_and_logprobs_go_on_bit_identically_on_another_engine(engine: EngineProcess, doomed: EngineProcess) -> None:
    prompts = [[3 + index, 9] for index in range(12)]
    whole = [engine.generate(prompt, seed=index, most=24, ignore_eos=True) for index, prompt in enumerate(prompts)]
    params = [{"max_new_tokens": 24, "sampling_seed": index, "ignore_eos": True} for index in range(12)]
    beside = doomed.post("/generate", {"input_ids": prompts, "sampling_params": params, "return_logprob": True})
    assert [tokens_and_logprobs(answer) for answer in beside] == [tokens_and_logprobs(answer) for answer in whole]
    starts = [prompt + answer["output_ids"][: 5 + index] for index, (prompt, answer) in enumerate(zip(prompts, whole, strict=True))]
    rest = [{"max_new_tokens": 24 - 5 - index, "sampling_seed": index, "ignore_eos": True} for index in range(12)]
    resumed = doomed.post("/generate", {"input_ids": starts[::-1], "sampling_params": rest[::-1], "return_logprob": True})[::-1]
    for index, answer in enumerate(resumed):
        tokens, logprobs = tokens_and_logprobs(whole[index])
        assert tokens_and_logprobs(answer) == (tokens[5 + index :], logprobs[5 + index :])


def test_a_failed_load_leaves_it_poisoned(doomed: EngineProcess, tiny: Path) -> None:
    status, answer = doomed.call("POST", "/update_weights_from_disk", {"model_path": "/nonexistent", "weight_version": "9"})
    assert status == 400
    assert not answer["success"]
    assert "poisoned" in answer["message"]
    assert doomed.get("/model_info")["weight_version"] == "0"
    status, answer = doomed.call("POST", "/generate", {"input_ids": [1]})
    assert status == 503
    assert "poisoned" in answer["error"]["message"]
    assert doomed.call("GET", "/health_generate")[0] == 503
    doomed.post("/update_weights_from_disk", {"model_path": str(tiny), "weight_version": "9"})
    assert doomed.generate([1])["meta_info"]["weight_version"] == "9"


@pytest.mark.parametrize("misuse", ["release while busy", "release twice", "resume twice", "touch"])
def test_deaths_that_sglang_dies_too(doomed: EngineProcess, misuse: str) -> None:
    with pytest.raises(OSError, match=r"reset|closed|refused|Remote end"):  # noqa: PT012 - one story each
        if misuse == "release while busy":
            _slowed(doomed, 4)
            doomed.post("/release_memory_occupation")
        elif misuse == "release twice":
            doomed.post("/release_memory_occupation", {"tags": ["kv_cache"]})
            doomed.post("/release_memory_occupation", {"tags": ["kv_cache"]})
        elif misuse == "resume twice":
            doomed.post("/resume_memory_occupation", {"tags": ["kv_cache"]})
        else:
            doomed.post("/release_memory_occupation", {"tags": ["kv_cache"]})
            doomed.post("/generate", {"input_ids": [1]})
    assert doomed.exit_code() == (-signal.SIGBUS if misuse == "touch" else 1)


def test_sigterm_ends_it_within_a_second_even_while_busy(doomed: EngineProcess) -> None:
    _slowed(doomed, 8)
    began = time.monotonic()
    os.kill(doomed.pid, signal.SIGTERM)
    assert doomed.exit_code() == 0
    assert time.monotonic() - began < 1.0


def test_the_module_starts_by_itself_and_says_in_one_line_why_it_does_not(tiny: Path, engine: EngineProcess) -> None:
    port = engine.url.rpartition(":")[2]
    argv = [sys.executable, "-P", "-m", "engines.embedded", "--port", port]
    environment = {**os.environ, "PYTHONPATH": OUR_PATH, "OMP_NUM_THREADS": "1"}
    for options, message in ((["--model", str(tiny)], "cannot be served"), (["--model", "/nonexistent"], "config.json")):
        done = subprocess.run([*argv, *options], check=False, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stdout.startswith("failed: ")
        assert message in done.stdout
        assert done.stderr == ""


def test_a_full_disk_costs_log_lines_and_nothing_else(tiny: Path) -> None:
    engine = EngineProcess(tiny, Path("/dev/full"))
    try:
        deadline = time.monotonic() + 30
        while engine.process.is_alive() and time.monotonic() < deadline:
            with suppress(OSError):
                engine.get("/health")
                break
            time.sleep(0.02)
        engine.post("/pause_generation", {"mode": "retract"})
        engine.post("/continue_generation")
        assert len(engine.generate([4, 5, 6], most=2)["output_ids"]) > 0
        os.kill(engine.pid, signal.SIGTERM)
        assert engine.exit_code() == 0
    finally:
        engine.process.kill()
        engine.process.join(10)
