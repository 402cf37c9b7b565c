"""The trainer of `drains`: asks for the same samples in every rollout and compares each answer with the one that nobody disturbed.

`options`: `samples` of `tokens` tokens each; `exact` (bit for bit, half of them sampled; else greedy, and the two best log-probs may change
places where they are less than CLOSE apart); `least_s` to `most_s` between two leases. Two connections ask for all samples, as two ranks do,
and every line of either is counted.
A lost, doubled, failed or wrong sample ends it with exit code 3, and standard error says which. Standard library only.
In its directory: `rollouts.jsonl`, one line each; `calm` appears when all undisturbed answers are known; `enough` (the driver's) ends it.
"""

import ctypes
import http.client
import json
import random
import struct
import sys
import threading
import time
import urllib.parse
from pathlib import Path
from typing import Any

from trainshed import Pipeline, Rollout, connect

CLOSE = 1e-4
SILENCE_S = 120.0
Line = dict[str, Any]


class Wrong(Exception):
    """A promise was broken."""


class Tensor:
    """As much of a torch tensor as publishing needs."""

    dtype = "torch.float32"

    def __init__(self, shape: list[int], data: bytes) -> None:
        self.shape, self._data = tuple(shape), ctypes.create_string_buffer(data, len(data))

    def element_size(self) -> int:
        return 4

    def numel(self) -> int:
        return len(self._data) // 4

    def stride(self) -> tuple[int, ...]:
        return ()

    def data_ptr(self) -> int:
        return ctypes.addressof(self._data)

    def detach(self) -> "Tensor":
        return self

    contiguous = detach

    def to(self, device: str) -> "Tensor":
        return self

    def reshape(self, *shape: int) -> "Tensor":
        return self


def weights_of(model: Path) -> dict[str, Tensor]:
    """The model's own tensors: publishing them makes a new version of the same bytes."""
    raw = (model / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entries = json.loads(raw[8 : 8 + length])
    entries.pop("__metadata__", None)
    start = 8 + length
    assert all(entry["dtype"] == "F32" for entry in entries.values())
    return {
        name: Tensor(entry["shape"], raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]])
        for name, entry in entries.items()
    }


class Asker:
    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.exact = bool(pipeline.options["exact"])
        self.tokens = int(pipeline.options["tokens"])
        chance = random.Random(pipeline.seed)
        self.asked = [self._request(index, chance) for index in range(int(pipeline.options["samples"]))]
        self.calm: dict[int, Line] = {}
        self.close = 0
        self.logprob_off = 0.0

    def _request(self, index: int, chance: random.Random) -> Line:
        temperature = chance.choice([0.0, 1.0]) if self.exact else 0.0
        params = {"max_new_tokens": self.tokens, "temperature": temperature, "ignore_eos": True, "sampling_seed": chance.randrange(1 << 62)}
        return {"sample": index, "input_ids": [chance.randrange(4, 36) for _ in range(chance.randrange(2, 12))], "sampling_params": params}

    def rollout(self, number: int) -> Line:
        """One rollout, checked. Raises Wrong."""
        began = time.monotonic()
        with self.pipeline.rollout(target=len(self.asked), number=number) as rollout:
            answers: list[dict[int, Line] | Exception] = []
            ranks = [threading.Thread(target=self._rank, args=(rollout, answers)) for _ in range(2)]
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()
            for answer in answers:
                if isinstance(answer, Exception):
                    raise Wrong(f"rollout {number}: {type(answer).__name__}: {answer}") from answer
            one, other = answers
            if one != other:
                raise Wrong(f"rollout {number}: two who asked for the same samples got different ones")
            assert isinstance(one, dict)
            for line in one.values():
                self._check(rollout, line)
        spans = [len(line["spans"]) for line in one.values()]
        versions = [len({span["version"] for span in line["spans"]}) for line in one.values()]
        return {
            "rollout": number, "samples": len(one), "interrupted": sum(count > 1 for count in spans), "spans": sum(spans), "most": max(spans),
            "versions": max(versions), "close": self.close, "logprob_off": self.logprob_off, "seconds": round(time.monotonic() - began, 3),
        }  # fmt: skip

    def _rank(self, rollout: Rollout, answers: list[dict[int, Line] | Exception]) -> None:
        try:
            answers.append(self._fetch(rollout))
        except Exception as error:
            answers.append(error)

    def _fetch(self, rollout: Rollout) -> dict[int, Line]:
        """Every line of one answer. The gateway is not hurt here, so the first answer must be whole."""
        url = urllib.parse.urlsplit(self.pipeline.url)
        connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=SILENCE_S)
        try:
            body = json.dumps({"samples": self.asked})
            connection.request("POST", f"/rollouts/{rollout.number}/samples", body, self._headers())
            answer = connection.getresponse()
            if answer.status != 200:
                raise Wrong(f"{answer.status}: {answer.read(2000)!r}")
            lines: dict[int, Line] = {}
            while raw := answer.readline():
                if raw.strip():
                    line = json.loads(raw)
                    if line["sample"] in lines:
                        raise Wrong(f"sample {line['sample']} came twice")
                    lines[line["sample"]] = line
        finally:
            connection.close()
        if missing := [one["sample"] for one in self.asked if one["sample"] not in lines]:
            raise Wrong(f"samples {missing} never came")
        if len(lines) != len(self.asked):
            raise Wrong(f"samples came that nobody asked for: {sorted(lines)}")
        return lines

    def _headers(self) -> dict[str, str]:
        return {"Content-Type": "application/json", "Authorization": f"Bearer {self.pipeline.api_key}"}

    def _check(self, rollout: Rollout, line: Line) -> None:
        if "error" in line or line["finish_reason"]["type"] != "length":
            raise Wrong(f"rollout {rollout.number}: {line}")
        covered = [token for span in line["spans"] for token in range(span["start"], span["end"])]
        if len(line["output_ids"]) != self.tokens or len(line["logprobs"]) != self.tokens or covered != list(range(self.tokens)):
            raise Wrong(f"rollout {rollout.number}: its tokens, log-probs and spans do not fit together: {line}")
        calm = self.calm.get(line["sample"])
        if calm is None:
            if len(line["spans"]) == 1:
                self.calm[line["sample"]] = line
        elif line["output_ids"] == calm["output_ids"]:
            off = max(abs(one - other) for one, other in zip(line["logprobs"], calm["logprobs"], strict=True))
            self.logprob_off = max(self.logprob_off, off)
            if self.exact and off:
                raise Wrong(f"rollout {rollout.number}: log-probs differ by {off}: {line}, undisturbed {calm}")
        else:
            self._differs(rollout, line, calm)

    def _differs(self, rollout: Rollout, line: Line, calm: Line) -> None:
        where = next(index for index, token in enumerate(calm["output_ids"]) if token != line["output_ids"][index])
        apart = float("inf") if self.exact else self._margin(rollout, self.asked[line["sample"]]["input_ids"] + calm["output_ids"][:where])
        if apart >= CLOSE:
            raise Wrong(f"rollout {rollout.number}: differs at token {where}, where the best are {apart} apart: {line}, undisturbed {calm}")
        self.close += 1

    def _margin(self, rollout: Rollout, prompt: list[int]) -> float:
        """How far the two best next tokens are apart, as log-probs."""
        url = urllib.parse.urlsplit(self.pipeline.url)
        connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=SILENCE_S)
        params = {"max_new_tokens": 1, "temperature": 0.0, "ignore_eos": True}
        body = {"input_ids": prompt, "sampling_params": params, "return_logprob": True, "top_logprobs_num": 2}
        headers = {**self._headers(), "X-Trainshed-Rollout": str(rollout.number)}
        try:
            connection.request("POST", "/generate", json.dumps(body), headers)
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        best, next_best = (entry[0] for entry in answer["meta_info"]["output_top_logprobs"][0])
        return float(best - next_best)


class Disturber(threading.Thread):
    """Takes its GPU for training now and then while a rollout is open, so that the scheduler preempts an engine; sometimes publishes."""

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__(daemon=True)
        self._pipeline, self._over = pipeline, threading.Event()
        self._between = float(pipeline.options["least_s"]), float(pipeline.options["most_s"])
        self._weights = weights_of(Path(pipeline.model))
        self._chance = random.Random(pipeline.seed + 1)
        self.leases = self.published = 0
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            while not self._over.wait(self._chance.uniform(*self._between)):
                with self._pipeline.lease("train"):
                    self.leases += 1
                    time.sleep(self._chance.uniform(0.0, 0.2))
                    if self._chance.random() < 0.3:
                        self._pipeline.publish(self._weights)
                        self.published += 1
        except Exception as error:
            self.failed = error

    def end(self) -> None:
        self._over.set()
        self.join(120)


def main() -> None:
    pipeline = connect()
    asker = Asker(pipeline)
    disturber: Disturber | None = None
    calm, enough = pipeline.directory / "calm", pipeline.directory / "enough"
    with open(pipeline.directory / "rollouts.jsonl", "a", encoding="utf-8") as record:
        for number in range(pipeline.steps):
            try:
                line = asker.rollout(number)
            except Wrong as wrong:
                sys.stderr.write(f"{wrong}\n")
                sys.exit(3)
            if disturber is None and len(asker.calm) == len(asker.asked):
                disturber = Disturber(pipeline)
                disturber.start()
                calm.touch()
            if disturber is not None:
                line |= {"leases": disturber.leases, "published": disturber.published}
                if disturber.failed is not None:
                    sys.stderr.write(f"{type(disturber.failed).__name__}: {disturber.failed}\n")
                    sys.exit(3)
            record.write(json.dumps(line) + "\n")
            record.flush()
            pipeline.report(number, reward=1.0)
            if enough.exists():
                break
    if disturber is not None:
        disturber.end()


if __name__ == "__main__":
    main()
