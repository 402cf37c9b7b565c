"""Device memory of one process on the cards of a scripted box (`gpu_box.py`): engines and trainers of the tests allocate here as on CUDA.

Standard library without `json` or `pathlib`: an engine starts in 20 ms. A process writes what it holds; the scripted driver
(`scripted_nvml.c`) reads it, and forgets it when the process is dead. Sizes are bytes; the box's file `process` says what a process costs.
"""

import os
import time

MIB = 1 << 20


class OutOfMemory(Exception):
    """The card has no room: `cuMemCreate` answers CUDA_ERROR_OUT_OF_MEMORY."""


def lines(path):
    """The `key value` lines of a file of the box; none where there is none."""
    try:
        with open(path, encoding="ascii") as file:
            return dict(line.rstrip("\n").partition(" ")[::2] for line in file)
    except FileNotFoundError:
        return {}


def visible(box, environ):
    """Positions of the cards that CUDA would show, in its order: UUIDs (and MIG's), or indices in the order of the PCI bus."""
    known = {}
    while card := lines(f"{box}/card.{len(known)}"):
        known[card["uuid"]] = len(known)
    names = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return [int(name) if name.isdigit() else known[name] for name in names]


class Card:
    """What this process holds on one card, by tag."""

    def __init__(self, box, index):
        self.box, self.index = box, index
        self.facts = {name: float(value) for name, value in lines(f"{box}/process").items()}
        card = lines(f"{box}/card.{index}")
        self.total, self.reserved = int(card["total"]), int(card["reserved"])
        self.held = {}
        with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:
            start = stat.read().rpartition(")")[2].split()[19]
        self.file = f"{box}/held.{index}/{os.getpid()}.{start}"

    def used(self):
        """Bytes that anybody holds."""
        found = 0
        folder = f"{self.box}/held.{self.index}"
        for name in os.listdir(folder):
            if not name.endswith(".new") and os.path.exists(f"/proc/{name.partition('.')[0]}"):
                with open(f"{folder}/{name}", encoding="ascii") as file:
                    found += int(file.read().split()[0])
        with open(f"{self.box}/foreign.{self.index}", encoding="ascii") as file:
            return found + sum(int(line.split()[1]) for line in file)

    def take(self, **tags):
        """Raises OutOfMemory when the card has no room."""
        wanted = sum(int(size) for size in tags.values())
        if self.reserved + self.used() + wanted > self.total:
            raise OutOfMemory(f"cu_mem_create out of memory on card {self.index}: {wanted >> 20} MiB, {self.used() >> 20} MiB are used")
        self.held |= {tag: int(size) for tag, size in tags.items()}
        self.write()

    def give(self, *tags):
        before = sum(self.held.values())
        for tag in tags:
            self.held.pop(tag, None)
        self.write(before, self.facts.get("settle", 0.0))

    def write(self, old=0, settle=0.0):
        """For `settle` seconds the driver still counts the `old` bytes: ranks of a group give back one after the other."""
        until = int((time.time() + settle) * 1000) if settle else 0
        with open(self.file + ".new", "w", encoding="ascii") as file:
            file.write(f"{sum(self.held.values())} {old} {until}\n")
        os.rename(self.file + ".new", self.file)

    def copy(self, size):
        """Takes the time of a copy between host and device (`bandwidth` in bytes/s, `haste` makes it shorter)."""
        time.sleep(size / self.facts["bandwidth"] / self.facts.get("haste", 1.0))


class EngineMemory:
    """An SGLang engine's memory on its bundle: context, NCCL and workspaces stay when it sleeps, and a part of the graphs; three tags go."""

    def __init__(self, box, environ):
        self.cards = [Card(box, index) for index in visible(box, environ)]
        for card in self.cards:
            facts, several = card.facts, len(self.cards) > 1
            card.take(
                context=facts["context"],
                workspace=facts["workspace"],
                nccl=facts["nccl"] if several else 0,
                residue=facts["graphs_several" if several else "graphs_one"],
            )
        self.take({"weights", "kv_cache", "cuda_graph"})

    def _size(self, card, tag):
        return {"weights": card.facts["weights"], "kv_cache": card.facts["kv"], "cuda_graph": card.facts["graphs_tagged"]}[tag] * card.total

    def take(self, tags):
        for card in self.cards:
            card.take(**{tag: self._size(card, tag) for tag in tags})
        if "weights" in tags:
            self.cards[0].copy(self._size(self.cards[0], "weights"))

    def give(self, tags=("weights", "kv_cache", "cuda_graph")):
        for card in self.cards:
            card.give(*tags)


class TrainerMemory:
    """A trainer's rank: the context stays from its first use of CUDA on, cuBLAS' workspace and NCCL's buffers from its first lease on."""

    def __init__(self, box, environ):
        (self.card,) = [Card(box, index) for index in visible(box, environ)]
        self.world = int(environ.get("WORLD_SIZE", "1"))

    def touch(self):
        """Makes the context, as `torch.cuda.init` does."""
        self.card.take(context=self.card.facts["context"])

    def onload(self):
        facts = self.card.facts
        if "context" not in self.card.held:
            self.touch()
        size = facts["training"] * self.card.total
        self.card.take(workspace=32 * MIB, nccl=facts["nccl"] if self.world > 1 else 0, state=size)
        self.card.copy(size)

    def offload(self):
        self.card.copy(self.card.held["state"])
        if not self.card.facts.get("hoards"):
            self.card.give("state")
