"""Residents: bit-equal to never offloading, whoever shares memory with whom; on a device inside leases only; what cannot be moved is named."""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from trainshed import storages
from trainshed.resident import Resident

from tests.trainers import resident_stacks as stacks
from tests.trainers.resident_stacks import Emptied, Stack, measured, mover, train
from trainers.protocol.child_env import OUR_PATH

MOVERS = ("virtual", "emptied")


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    gc.collect()
    assert measured() == 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", MOVERS)
@pytest.mark.parametrize("make", stacks.ALONE)
def test_training_is_bit_equal_to_never_offloading(make: Callable[[], Stack], kind: str) -> None:
    never = train(make)
    assert len(set(never)) == stacks.LEASES  # it does train
    assert train(make, mover(kind)) == never


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, list[str]]]]:
    """What two gloo ranks say of every stack: name -> mover -> hashes after each lease."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    env = {**os.environ, "PYTHONPATH": OUR_PATH, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(Path(stacks.__file__)), str(store)]
    children = [subprocess.Popen([*command, str(rank)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in (0, 1)]
    said = []
    try:
        for child in children:
            out, err = child.communicate(timeout=100)
            assert child.returncode == 0, err.decode()[-2000:]
            said.append(json.loads(out.splitlines()[-1]))
    finally:
        for child in children:
            child.kill()
    return said


@pytest.mark.slow
@pytest.mark.parametrize("name", stacks.RANKS)
def test_two_ranks_are_bit_equal_to_never_offloading(ranks: list[dict[str, dict[str, list[str]]]], name: str) -> None:
    for outcome in ranks:
        assert len(set(outcome[name]["never"])) == stacks.LEASES
        assert outcome[name] == dict.fromkeys(("never", *MOVERS), outcome[name]["never"])


# Random aliasings ------------------------------------------------------------------------------------------------------------------

_VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "whole": lambda t: t,
    "slice": lambda t: t[3:17],
    "overlapping": lambda t: t[9:30],
    "strided": lambda t: t[1::3],
    "transposed": lambda t: t[:24].view(4, 6).t(),
    "windows": lambda t: t.as_strided((5, 8), (4, 1)),
    "bytes": lambda t: t.view(torch.int32)[2:10],
    "empty": lambda t: t[:0],
}


@st.composite
def _worlds(draw: st.DrawFn) -> list[tuple[int, str, str]]:
    """Tensors as (which memory, which view of it, who knows it)."""
    roles = st.sampled_from(["parameter", "buffer", "gradient", "state", "group", "unseen"])
    return draw(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(sorted(_VIEWS)), roles), min_size=1, max_size=8))


class _Optimizer:
    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}
        self.param_groups: list[dict[str, Any]] = [{"params": []}]


def _world(tensors: list[tuple[int, str, str]]) -> tuple[list[Any], list[torch.Tensor], list[torch.Tensor]]:
    """The owners; every tensor; those that nobody shows to the mover."""
    memories = [torch.arange(40, dtype=torch.float32) + 100 * i for i in range(3)]
    model, optimizer, every, unseen = nn.Module(), _Optimizer(), [], []
    for index, (memory, view, role) in enumerate(tensors):
        tensor = _VIEWS[view](memories[memory])
        if role in ("parameter", "gradient"):
            parameter = nn.Parameter(tensor.detach() if role == "parameter" else torch.zeros_like(tensor), tensor.is_floating_point())
            if role == "gradient":
                parameter.grad = tensor.detach()
            model.register_parameter(f"p{index}", parameter)
            every += [parameter, *([] if parameter.grad is None else [parameter.grad])]
            continue
        every.append(tensor)
        if role == "buffer":
            model.register_buffer(f"b{index}", tensor)
        elif role == "state":
            optimizer.state[index] = {"moments": [tensor]}
        elif role == "group":
            optimizer.param_groups[0]["params"].append(tensor)
        else:
            unseen.append(tensor)
    return [model, optimizer], every, unseen


@pytest.mark.parametrize("kind", MOVERS)
@given(tensors=_worlds(), numbers=st.lists(st.integers(0, 1 << 16), min_size=5, max_size=5))
@settings(max_examples=60, deadline=None)
def test_whoever_shares_memory_goes_on_sharing_it(kind: str, tensors: list[tuple[int, str, str]], numbers: list[int]) -> None:
    owners, every, unseen = _world(tensors)
    _, twins, _ = _world(tensors)
    moves = mover(kind)
    moves.add(*owners)
    for lease, number in enumerate(numbers):
        moves.onload()
        with torch.no_grad():
            for i, (tensor, twin) in enumerate(zip(every, twins, strict=True)):
                if (number >> i) & 1 and not torch._debug_has_internal_overlap(tensor):
                    tensor.add_(lease + i)
                    twin.add_(lease + i)
        assert all(map(torch.equal, every, twins))
        moves.offload()
        assert kind == "emptied" or all(map(torch.equal, every, twins))
        assert all(torch.equal(a, b) for a, b in zip(every, twins, strict=True) if all(a is not t for t in unseen))
    assert measured() == 0


# A virtual GPU ---------------------------------------------------------------------------------------------------------------------


def test_what_is_held_is_what_is_measured() -> None:
    model = nn.Sequential(*[nn.Linear(500, 500) for _ in range(8)])
    optimizer = torch.optim.AdamW(model.parameters())
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(model, optimizer)
    assert moves.held == measured() == 0
    size = sum(p.nbytes for p in model.parameters())
    for copies in (1, 4, 4, 4):  # Adam's moments and the gradients are taken in after the first lease
        moves.onload()
        model(torch.ones(2, 500)).sum().backward()
        optimizer.step()
        assert copies * size <= measured() <= copies * size + 4 * 2 * 4096 + 64 * 16 * copies
        assert measured() <= moves.held <= measured() + (4 << 20)
        moves.offload()
        assert moves.held == measured() == 0


def test_addresses_and_storages_stay_the_same_from_lease_to_lease_and_no_memory_is_made() -> None:
    model = nn.Sequential(*[nn.Linear(1000, 1000) for _ in range(4)])
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 1000)).sum().backward()
    optimizer.step()
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(model, optimizer)
    tensors = stacks.everything(model, optimizer)
    host = [t.data_ptr() for t in tensors]
    identities = [t.untyped_storage()._cdata for t in tensors]
    there, sizes = [], []
    for _ in range(8):
        moves.onload()
        there.append([t.data_ptr() for t in tensors])
        moves.offload()
        assert [t.data_ptr() for t in tensors] == host
        assert [t.untyped_storage()._cdata for t in tensors] == identities
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert all(addresses == there[0] for addresses in there)
    assert not set(there[0]) & set(host)
    assert max(sizes[1:]) - sizes[1] < 4 << 20  # all of it is 64 MB


def test_slots_of_what_is_dead_are_used_again_and_pools_without_use_are_closed() -> None:
    model = nn.Linear(700, 700)
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(model)
    files = []
    for _ in range(6):  # new gradients in every lease, alive at its end
        moves.onload()
        files.append(sum(os.path.realpath(f"/proc/self/fd/{fd}").startswith("/memfd:trainshed-gpu") for fd in os.listdir("/proc/self/fd")))
        model.weight.grad = model.bias.grad = None
        model(torch.ones(2, 700)).sum().backward()
        moves.offload()
    assert files == [1, 2, 2, 2, 2, 2]
    model.weight = nn.Parameter(torch.ones(900, 900))
    model.bias = nn.Parameter(torch.ones(900))
    for _ in range(2):
        moves.onload()
        moves.offload()
    moves.onload()
    assert measured() < 4_000_000
    moves.offload()


def test_what_a_lease_drops_does_not_come_back() -> None:
    model = nn.Linear(700, 700)
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(model)
    model(torch.ones(2, 700)).sum().backward()
    for expected in (2, 1, 1):
        moves.onload()
        assert round(measured() / model.weight.nbytes) == expected
        model.zero_grad()
        moves.offload()


def test_tensors_may_be_read_and_written_between_leases_whoever_looks() -> None:
    model = nn.Linear(30, 30)
    moves = Resident(f"virtual:{stacks.GPU}")
    row = model.weight.data[3]
    moves.add(model)
    for lease in range(3):
        moves.onload()
        row.add_(1)
        moves.offload()
        before = model.weight.detach().clone()
        model.weight.data[3, 3] = lease
        assert row[3] == lease
        kept = model.weight.data[5]
        moves.onload()
        kept.zero_()
        assert model.weight[5].abs().sum() == 0
        assert torch.equal(model.weight[4], before[4])
        moves.offload()


def test_models_from_numpy_and_files_are_taken_in(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    array = np.ones(2000, dtype=np.float32)
    save_file({"w": torch.ones(3000)}, tmp_path / "m.safetensors")
    model = nn.Module()
    model.register_buffer("lent", torch.from_numpy(array))
    model.file = nn.Parameter(load_file(tmp_path / "m.safetensors")["w"])
    seen = model.file.detach().numpy()  # torch will not resize this storage any more
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(model)
    for lease in range(1, 4):
        moves.onload()
        assert measured() >= 20_000
        with torch.no_grad():
            model.file.add_(1)
            model.lent.add_(1)
        moves.offload()
        assert seen[7] == array[7] == model.file[7] == model.lent[7] == lease + 1


def test_a_script_that_gives_a_storage_other_memory_is_not_undone() -> None:
    model = nn.Linear(40, 40, bias=False)
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(model)
    moves.onload()
    with torch.no_grad():
        model.weight.fill_(2)
    model.weight.untyped_storage()._swap_data_ptr_(torch.full((1600,), 3.0).untyped_storage())
    moves.offload()
    assert model.weight.sum() == 4800
    moves.onload()
    assert measured() > 0
    assert model.weight.sum() == 4800
    moves.offload()
    model.weight.untyped_storage().resize_(10_000)
    moves.onload()
    assert model.weight.sum() == 4800
    moves.offload()


def test_a_storage_is_on_the_device_for_one_resident_only() -> None:
    model = nn.Linear(40, 40)
    one, two = Resident(f"virtual:{stacks.GPU}"), Resident(f"virtual:{stacks.GPU}")
    one.add(model)
    two.add(model)
    one.onload()
    with pytest.raises(ValueError, match=r"Linear\.weight: another Resident"):
        two.onload()
    one.offload()
    two.onload()
    two.offload()
    assert measured() == 0


def test_the_memory_of_tensors_outlives_the_resident() -> None:
    model = nn.Linear(40, 40)
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(model)
    moves.onload()
    before = model.weight.detach().clone()
    del moves
    gc.collect()
    assert measured() > 0
    assert torch.equal(model.weight, before)
    del model
    gc.collect()
    assert measured() == 0


def test_a_torch_that_cannot_exchange_memory_leaves_everything_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storages, "_exchangeable", lambda: False)
    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(model)
    with pytest.warns(UserWarning, match="stay in host memory"):
        moves.onload()
    moves.offload()
    assert torch.equal(model.weight, before)
    assert measured() == 0


def test_optimizer_state_is_taken_in_once_it_exists_and_ties_stay() -> None:
    model = nn.Sequential(nn.Embedding(16, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 16, bias=False))
    model[3].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(model)
    moves.onload()
    first = measured()
    moves.add(optimizer)
    assert moves.held >= measured() >= first > 0
    tokens = torch.arange(16)
    nn.functional.cross_entropy(model(tokens), tokens).backward()
    optimizer.step()
    moves.offload()
    assert moves.held == 0
    moment = optimizer.state[model[1].weight]["exp_avg"]
    before = moment.clone()
    moves.onload()
    assert measured() > first
    assert optimizer.state[model[1].weight]["exp_avg"] is moment
    assert torch.equal(moment, before)
    assert model[0].weight.data_ptr() == model[3].weight.data_ptr()
    for tensor in (moment, model[1].weight, model[1].weight.grad, model[2].running_mean):
        assert "trainshed-gpu-7" in _mapping(tensor)
    moves.offload()
    assert "trainshed-gpu-7" not in _mapping(moment)


def test_master_weights_that_only_the_optimizer_knows_are_on_the_device() -> None:
    model = nn.Linear(4, 4).bfloat16()
    master = nn.Parameter(model.weight.detach().float())
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(model, torch.optim.SGD([master], lr=0.1))
    moves.onload()
    assert "trainshed-gpu-7" in _mapping(master)
    moves.offload()
    assert "trainshed-gpu-7" not in _mapping(master)


def _mapping(tensor: torch.Tensor | None) -> str:
    """The line of /proc/self/maps that the tensor's first byte is in."""
    assert tensor is not None
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, _, end = line.split()[0].partition("-")
        if int(start, 16) <= tensor.data_ptr() < int(end, 16):
            return line
    raise AssertionError("the tensor is nowhere")


# As on a GPU -----------------------------------------------------------------------------------------------------------------------


def emptied() -> tuple[Any, Emptied]:
    moves = mover("emptied")
    return moves, moves._memory


def test_on_a_gpu_storages_are_empty_between_leases_and_host_buffers_are_kept() -> None:
    model = nn.Linear(50, 50)
    optimizer = torch.optim.AdamW(model.parameters())
    moves, memory = emptied()
    moves.add(model, optimizer)
    storage = model.weight.untyped_storage()
    counts = []
    for _ in range(5):
        moves.onload()
        assert model.weight.untyped_storage()._cdata == storage._cdata
        optimizer.zero_grad()  # new gradients in every lease
        model(torch.ones(2, 50)).sum().backward()
        optimizer.step()
        moves.offload()
        assert moves.held == storage.nbytes() == 0
        counts.append(memory.pinned)
    assert counts == [8] * 5
    moves.onload()
    assert memory.held == sum(t.nbytes for t in stacks.everything(model, optimizer))


def test_on_a_gpu_what_is_taken_between_leases_is_a_copy_of_that_time() -> None:
    model = nn.Linear(4, 4)
    moves, memory = emptied()
    moves.add(model)
    taken = []
    for lease in range(3):
        moves.onload()
        with torch.no_grad():
            model.weight.fill_(lease)
        moves.offload()
        taken.append(model.state_dict()["weight"])
    assert [t.sum().item() for t in taken] == [0, 16, 32]
    assert memory.pinned == 2 + 2  # the bias's buffer is used again


def test_on_a_gpu_what_the_script_does_between_leases_is_taken_along() -> None:
    model, head = nn.Linear(4, 4), nn.Linear(4, 4)
    moves, _ = emptied()
    moves.add(model, head)
    moves.onload()
    moves.offload()
    model.load_state_dict({"weight": torch.ones(4, 4), "bias": torch.ones(4)})
    head.weight.data = model.weight.data  # tied between leases
    head.bias.data = torch.full((4,), 5.0)
    moves.onload()
    with torch.no_grad():
        model.weight.add_(1)
    assert head.weight.sum() == model.weight.sum() == 32
    assert head.bias.sum() == 20
    moves.offload()
    assert head.weight.sum() == model.weight.sum() == 32


class Born(Emptied):
    """As on a GPU to which the models come from host memory: on the device is what was made there."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Any] = {}

    def _is_on(self, storage: Any) -> bool:
        return storage._cdata in self.made

    def _allocate(self, size: int) -> Any:
        storage = super()._allocate(size)
        self.made[storage._cdata] = storages._weak(storage)
        return storage


def born() -> Resident:
    moves = Resident("cpu")
    moves._memory = Born()
    return moves


def test_on_a_gpu_models_come_from_host_memory_with_all_that_shares() -> None:
    model = nn.Linear(6, 6)
    flat = nn.Parameter(stacks._flatten(model))
    optimizer = torch.optim.SGD([flat], lr=1.0)
    before = flat.detach().clone()
    moves = born()
    moves.add(model)
    moves.add(optimizer)
    for _ in range(3):
        moves.onload()
        flat.grad = torch.ones_like(flat)
        optimizer.step()
        moves.offload()
    assert torch.equal(flat, before - 1 - 1 - 1)
    assert torch.equal(torch.cat([p.detach().reshape(-1) for p in model.parameters()]), flat)


def test_on_a_gpu_nothing_is_torn_from_what_is_not_known() -> None:
    model = nn.Linear(6, 6)
    flat = stacks._flatten(model)
    moves = born()
    moves.add(model)
    with pytest.raises(ValueError, match=r"Linear\.weight .* a tensor that resident\(\) does not know shares its memory"):
        moves.onload()
    assert model.weight.data_ptr() == flat.data_ptr()
    del flat
    moves.onload()
    moves.offload()
    odd = nn.Module()
    odd.register_buffer("z", torch.ones(2, dtype=torch.complex64).conj())
    moves = born()
    moves.add(odd)
    with pytest.raises(ValueError, match=r"Module\.z to cpu: it is .* a conjugate"):
        moves.onload()


def test_on_a_gpu_foreign_memory_and_live_graphs_are_refused_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(6, 6)
    moves, memory = emptied()
    model.foreign = nn.Parameter(torch.frombuffer((ctypes.c_float * 8)(), dtype=torch.float32))
    moves.add(model)
    moves.onload()
    with pytest.raises(ValueError, match=r"Linear\.foreign off the GPU: its memory is not torch's own"):
        moves.offload()
    del model.foreign
    monkeypatch.setattr(memory, "_refuse_graphs", lambda: storages.DeviceMemory._refuse_graphs(memory))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("CUDAGraph", (), {}))  # the real ones need a GPU
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="being captured"):
        moves.offload()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(ValueError, match="while a CUDA graph lives"):
        moves.offload()
    assert moves.on_device
    assert model.weight.untyped_storage().nbytes() == 144
    del graph
    moves.offload()
    assert not moves.on_device


def test_on_a_gpu_that_is_full_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    before = [p.detach().clone() for p in model.parameters()]
    moves, _ = emptied()
    moves.add(model)
    moves.onload()
    moves.offload()
    real, room = storages._bytes_of, [2]

    def full(storage: Any) -> torch.Tensor:
        room[0] -= 1
        if room[0] < 0:
            raise torch.OutOfMemoryError("full")
        return real(storage)

    monkeypatch.setattr(storages, "_bytes_of", full)
    with pytest.raises(torch.OutOfMemoryError):
        moves.onload()
    monkeypatch.setattr(storages, "_bytes_of", real)
    moves.offload()
    assert moves.held == 0
    moves.onload()
    assert all(map(torch.equal, before, model.parameters()))
    assert model[1].bias.untyped_storage().nbytes() == 24


# Refused by name -------------------------------------------------------------------------------------------------------------------


class _Opaque(torch.Tensor):
    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "_Opaque":
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


def _shared() -> torch.Tensor:
    return torch.ones(4).share_memory_()


def _quantised() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


REFUSED: list[tuple[Callable[[], torch.Tensor], type[Exception], str]] = [
    (_shared, ValueError, "shared with other processes .* clone it"),
    (lambda: torch.ones(3, device="meta"), ValueError, "meta tensor"),
    (_quantised, TypeError, "quantised"),
    (lambda: torch.ones(3, 3).to_mkldnn(), TypeError, "layout is _mkldnn"),
    (lambda: _Opaque(torch.ones(3)), TypeError, "_Opaque whose memory cannot be seen"),
    (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), TypeError, "nested"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "error", "why"), REFUSED)
def test_what_cannot_be_moved_is_refused_by_name(make: Callable[[], torch.Tensor], error: type[Exception], why: str) -> None:
    model = nn.Module()
    model.register_buffer("odd", make())
    optimizer = _Optimizer()
    optimizer.state["p"] = {"exp": [make()]}
    fine = nn.Linear(4, 4)
    moves = Resident(f"virtual:{stacks.GPU}")
    moves.add(fine)
    moves.onload()
    with pytest.raises(error, match=rf"cannot move Module\.odd: .*{why}"):
        moves.add(model)
    with pytest.raises(error, match=rf"cannot move _Optimizer\.state\['p'\]\['exp'\]\[0\]: .*{why}"):
        moves.add(optimizer)
    moves.offload()
    moves.onload()  # neither was taken
    moves.offload()


def test_lazy_parameters_files_and_strangers_are_refused(tmp_path: Path) -> None:
    moves = Resident(f"virtual:{stacks.GPU}")
    with pytest.raises(ValueError, match=r"LazyLinear\.weight: it is not initialised"):
        moves.add(nn.LazyLinear(4))
    with pytest.raises(TypeError, match="models"):
        moves.add(3)
    (tmp_path / "f").write_bytes(bytes(64))
    model = nn.Module()
    model.register_buffer("mapped", torch.from_file(str(tmp_path / "f"), shared=True, size=16))
    moves.add(model)
    with pytest.raises(ValueError, match=r"Module\.mapped: .*mapped from a file"):
        moves.onload()
    assert not moves.on_device


def test_what_wraps_other_tensors_is_moved_by_its_parts() -> None:
    from torch.testing._internal.two_tensor import TwoTensor

    inner = torch.ones(2000), torch.full((2000,), 2.0)
    model = nn.Module()
    model.register_parameter("pair", nn.Parameter(TwoTensor(*inner)))
    for kind in MOVERS:
        moves = mover(kind)
        moves.add(model)
        for _ in range(2):
            moves.onload()
            assert (measured() >= 16_000) == (kind == "virtual")
            inner[0].add_(1)
            moves.offload()
        moves.onload()
        assert (inner[0][5] - inner[1][5]).item() == (1 if kind == "virtual" else 3)
        assert model.pair.a.data_ptr() == inner[0].data_ptr()
        if kind == "virtual":
            moves.offload()


def test_a_cpu_resident_moves_nothing() -> None:
    moves = Resident("cpu")
    moves.add(nn.Linear(2, 2))
    moves.onload()
    moves.offload()
    assert moves.held == 0
