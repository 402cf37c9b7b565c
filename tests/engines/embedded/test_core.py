"""The engine's core in this process: answers that are bit-identical whatever happens beside and between, and its refusals and deaths."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from trainshed.virtual_gpu import parse_device

from engines.embedded.architecture import UnsupportedModel
from engines.embedded.batching import Request, Sampling
from engines.embedded.core import Answer, Core, Death, Pausing, Refusal

Result = tuple[tuple[int, ...], tuple[float, ...]]


def _core(model: Path, slots: int = 8, device: str = "virtual:6") -> Core:
    return Core(model, parse_device(device), slots, 64, "0", lambda tokens: "")


def _request(rid: str, prompt: Sequence[int], seed: int, most: int, **options: object) -> Request:
    return Request(rid, tuple(prompt), Sampling(seed=seed, max_new_tokens=most, **options))  # type: ignore[arg-type]


def _run(core: Core) -> dict[str, Answer]:
    while core.busy:
        core.step()
    ended = {answer.rid: answer for answer in core.outbox if answer.finish}
    core.outbox.clear()
    return ended


def _samples(count: int) -> list[tuple[list[int], int, dict[str, float]]]:
    generator = torch.Generator().manual_seed(3)
    samples = []
    for index in range(count):
        length = int(torch.randint(1, 9, (1,), generator=generator))
        prompt = torch.randint(0, 64, (length,), generator=generator).tolist()
        samples.append((prompt, 1000 + index, {"temperature": (1.0, 0.7, 1.3)[index % 3], "top_p": (1.0, 0.9)[index % 2]}))
    return samples


def _alone(model: Path, samples: list[tuple[list[int], int, dict[str, float]]], most: int) -> list[Result]:
    results = []
    for index, (prompt, seed, options) in enumerate(samples):
        core = _core(model)
        core.submit(_request(str(index), prompt, seed, most, **options))
        answer = _run(core)[str(index)]
        results.append((answer.output, answer.logprobs))
    return results


def test_bit_identical_beside_anyone_in_any_slot_and_after_any_interruption(tiny: Path) -> None:
    samples = _samples(12)
    alone = _alone(tiny, samples, 16)
    for order in (range(12), reversed(range(12))):
        core = _core(tiny)
        for index in order:
            prompt, seed, options = samples[index]
            core.submit(_request(str(index), prompt, seed, 16, **options))
        for _ in range(9):
            core.step()
        core.pause(Pausing.RETRACT)
        assert not core.busy
        core.go_on()
        ended = _run(core)
        assert [(ended[str(index)].output, ended[str(index)].logprobs) for index in range(12)] == alone

    first, second = _core(tiny), _core(tiny)
    for index, (prompt, seed, options) in enumerate(samples):
        first.submit(_request(str(index), prompt, seed, 16, **options))
    for _ in range(14):
        first.step()
    first.abort(lambda rid: True)
    parts = {answer.rid: answer for answer in first.outbox}
    for index, (prompt, seed, options) in reversed(list(enumerate(samples))):
        so_far = parts[str(index)].output
        if len(so_far) < 16:
            second.submit(_request(str(index), [*prompt, *so_far], seed, 16 - len(so_far), **options))
    rest = _run(second)
    for index, (tokens, logprobs) in enumerate(alone):
        part, more = parts[str(index)], rest.get(str(index))
        assert part.output + (more.output if more else ()) == tokens
        assert part.logprobs + (more.logprobs if more else ()) == logprobs
    assert any(0 < len(part.output) < 16 for part in parts.values())


def test_it_computes_what_transformers_computes(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    core = _core(tiny)
    core.submit(_request("a", [5, 9, 30, 2], 1, 12))
    answer = _run(core)["a"]
    with torch.no_grad():
        logits = reference(torch.tensor([[5, 9, 30, 2, *answer.output]])).logits[0, 3:-1]
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(answer.output)[:, None]).squeeze(1)
    assert torch.allclose(torch.tensor(answer.logprobs), expected, atol=2e-4)


@pytest.mark.parametrize("device", ["virtual:6", "cpu"])
def test_a_sleep_and_a_reload_change_no_bit(tiny: Path, other: Path, device: str) -> None:
    core = _core(tiny, device=device)
    core.submit(_request("a", [3, 4], 1, 8))
    before = _run(core)["a"]
    core.release([])
    assert core.memory.held == 0
    with pytest.raises(Refusal, match="released"):
        core.submit(_request("b", [3, 4], 1, 8))
    core.resume(["weights"])
    core.resume(["kv_cache", "cuda_graph"])
    with pytest.raises(Refusal, match="have not been loaded"):
        core.submit(_request("b", [3, 4], 1, 8))
    core.load(other, "1", flush=False)
    core.submit(_request("b", [3, 4], 1, 8))
    assert _run(core)["b"].logprobs != before.logprobs
    core.load(tiny, "2", flush=True)
    core.submit(_request("c", [3, 4], 1, 8))
    after = _run(core)["c"]
    assert (after.output, after.logprobs) == (before.output, before.logprobs)
    assert [(span.version, span.start, span.end) for span in after.spans] == [("2", 0, 8)]


def test_misuse_that_sglang_does_not_survive(tiny: Path) -> None:
    core = _core(tiny)
    core.submit(_request("a", [3, 4], 1, 8))
    assert not core.flush()
    with pytest.raises(Death, match="idle"):
        core.release([])
    core.pause(Pausing.IN_PLACE)
    core.step()
    with pytest.raises(Death, match="idle"):
        core.release([])
    core.pause(Pausing.RETRACT)
    assert core.flush()
    core.release(["kv_cache"])
    with pytest.raises(Death, match="released already"):
        core.release(["kv_cache"])
    with pytest.raises(Death, match="not released"):
        core.resume(["weights"])
    core.release(["weights"])
    with pytest.raises(Death, match="released"):
        core.load(tiny, "1", flush=False)


def test_a_failed_load_poisons_until_one_succeeds(tiny: Path, tmp_path: Path) -> None:
    core = _core(tiny)
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    (broken / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes()[:-100])
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny, wrong)
    config = json.loads((tiny / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4, "layer_types": None}))
    for bad in (tmp_path / "absent", broken, wrong):
        with pytest.raises(Refusal, match="poisoned"):
            core.load(bad, "9", flush=False)
        assert core.version == "0"
        with pytest.raises(Refusal, match="poisoned"):
            core.submit(_request("a", [3], 1, 1))
    core.load(tiny, "3", flush=False)
    core.submit(_request("a", [3], 1, 1))
    assert _run(core)["a"].version == "3"


def test_a_bad_model_cannot_leave_a_trace_in_the_next_sample(tiny: Path) -> None:
    core = _core(tiny)
    core.submit(_request("a", [3, 4], 1, 8))
    before = _run(core)["a"]
    for tensor in core.memory.weights.values():
        tensor.fill_(torch.nan)
    core.submit(_request("b", [3, 4], 1, 8))
    finish = _run(core)["b"].finish
    assert finish is not None
    assert finish["status_code"] == 500
    core.load(tiny, "1", flush=False)
    core.submit(_request("c", [3, 4], 1, 8))
    after = _run(core)["c"]
    assert (after.output, after.logprobs) == (before.output, before.logprobs)


def test_what_would_not_be_exact_is_refused_at_the_start(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="multiple of 4"):
        _core(tiny, slots=6)
    for change, message in (
        ({"hidden_size": 96}, "hidden = 96 is not a power of two"),
        ({"model_type": "gpt2"}, "computes qwen2"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type 'yarn'"),
    ):
        config = {**json.loads((tiny / "config.json").read_text()), **change}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModel, match=message):
            _core(tmp_path)


def test_a_stream_has_events_of_as_many_tokens_as_are_asked_for(tiny: Path) -> None:
    core = _core(tiny)
    sampling = Sampling(seed=1, max_new_tokens=20, ignore_eos=True)
    core.submit(Request("coarse", (1, 2, 3), sampling, streams=True, interval=6))
    core.submit(Request("fine", (1, 2, 3), sampling, streams=True))
    core.submit(Request("none", (1, 2, 3), sampling))
    shown: dict[str, list[int]] = {"coarse": [], "fine": [], "none": []}
    while core.busy:
        core.step()
        core.show_streams()
        for answer in core.outbox:
            shown[answer.rid].append(len(answer.output))
        core.outbox.clear()
    assert shown == {"coarse": [1, 7, 13, 19, 20], "fine": list(range(1, 21)), "none": [20]}
