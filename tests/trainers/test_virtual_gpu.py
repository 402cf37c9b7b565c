"""Virtual GPU memory: measured from outside, gone when released, back under the same tensors, never unmapped under a live one."""

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from trainshed.virtual_gpu import Device, DeviceFull, DeviceKind, Pool, memfd_name, parse_device, room

from trainers.protocol.child_env import OUR_PATH

GPU = Device(DeviceKind.VIRTUAL, 7)


def measured(gpu: int = 7, pid: int | str = "self") -> int:
    """Bytes of virtual GPU `gpu` that a process holds, as anyone outside sees it."""
    total = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(entry) == f"/memfd:{memfd_name(gpu)} (deleted)":
                total += entry.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


@pytest.fixture(autouse=True)
def _empty() -> None:
    gc.collect()
    assert measured() == 0


def test_device_strings() -> None:
    assert parse_device("virtual:3") == Device(DeviceKind.VIRTUAL, 3)
    assert str(parse_device("cuda:0")) == parse_device("cuda:0").torch_device == "cuda:0"
    assert parse_device("cpu").torch_device == parse_device("virtual:1").torch_device == "cpu"
    for wrong in ("", "gpu:0", "virtual", "virtual:", "virtual:-1", "virtual:x", "virtual:²", "cpu:0", "cuda:12345"):
        with pytest.raises(ValueError, match="none of virtual:N"):
            parse_device(wrong)


def test_only_touched_pages_count_and_each_pool_counts_once() -> None:
    pool = Pool(GPU, 3 << 20)
    assert pool.size == 4 << 20
    assert measured() == 0
    pool.take((1 << 18,), torch.float32).fill_(1.0)
    assert measured() == 1 << 20
    pool.touch()
    assert measured() == 4 << 20
    other = Pool(GPU, 1)
    other.touch()
    assert measured() == 6 << 20
    pool.close()
    other.close()
    assert measured() == 0


def test_release_gives_back_and_restore_brings_the_same_tensors_zeroed() -> None:
    pool = Pool(GPU, 1 << 20)
    tensor = pool.take((3, 5), torch.float32)
    tensor.fill_(2.0)
    where = tensor.data_ptr()
    pool.release()
    pool.release()
    assert measured() == 0
    pool.restore()
    assert tensor.data_ptr() == where
    assert tensor.sum().item() == 0.0
    pool.close()


def test_tensors_are_aligned_and_a_full_pool_says_so() -> None:
    pool = Pool(GPU, room([((3,), torch.float32), ((5, 5), torch.bfloat16)]))
    assert pool.take((3,), torch.float32).data_ptr() % 64 == 0
    assert pool.take((5, 5), torch.bfloat16).data_ptr() % 64 == 0
    with pytest.raises(DeviceFull, match="left"):
        pool.take((1 << 20,), torch.float32)
    pool.close()


def test_an_unmapping_never_happens_under_a_live_tensor() -> None:
    pool = Pool(GPU, 1 << 20)
    tensor = pool.take((4,), torch.float32)
    tensor.fill_(3.0)
    del pool
    gc.collect()
    assert tensor.tolist() == [3.0] * 4
    assert measured() > 0


def test_a_stray_touch_after_release_kills_the_process() -> None:
    code = (
        "import torch; from trainshed.virtual_gpu import Pool, parse_device\n"
        "pool = Pool(parse_device('virtual:7'), 1); tensor = pool.take((4,), torch.float32); tensor.fill_(1)\n"
        "pool.release(); print('released', flush=True); tensor.sum()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": OUR_PATH}, capture_output=True, timeout=60
    )
    assert done.stdout == b"released\n"
    assert done.returncode == -signal.SIGBUS


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, trainshed.virtual_gpu as d; d.memfd_name(1); d.parse_device('virtual:1'); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": OUR_PATH}, check=True, timeout=60)
    assert memfd_name(12) == "trainshed-gpu-12"


@pytest.mark.parametrize("device", [Device(DeviceKind.CPU)])
def test_ordinary_memory_behaves_alike(device: Device) -> None:
    pool = Pool(device, 1 << 20)
    tensor = pool.take((8,), torch.float32)
    tensor.fill_(1.0)
    pool.release()
    assert tensor.untyped_storage().size() == 0
    pool.restore()
    assert tensor.tolist() == [0.0] * 8
