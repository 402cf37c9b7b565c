"""Both shapes of a group: who has which GPU, and what each member's command line says."""

import pytest

from engines.lifecycle.members import MOST_MEMBERS, WINDOW, Member, Ports, arguments, shape


def test_one_process_has_the_whole_bundle() -> None:
    assert shape("one", 8) == (Member(0, (0, 1, 2, 3, 4, 5, 6, 7)),)
    assert arguments(shape("one", 2)[0], 1, Ports(20000), tp=2, ep=2) == (
        [
            "--host",
            "127.0.0.1",
            "--port",
            "20000",
            "--nccl-port",
            "20016",
            "--tp-size",
            "2",
            "--dist-init-addr",
            "127.0.0.1:20017",
            "--ep-size",
            "2",
        ]
    )


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])
def test_one_process_for_each_gpu(tp: int) -> None:
    members = shape("per-gpu", tp)
    assert [member.gpus for member in members] == [(gpu,) for gpu in range(tp)]
    assert [member.head for member in members] == [True] + [False] * (tp - 1)
    lines = [arguments(member, tp, Ports(20000), tp=tp, ep=1) for member in members]
    if tp > 1:
        assert len({line[line.index("--dist-init-addr") + 1] for line in lines}) == 1, "one rendezvous for all"
        assert [line[line.index("--node-rank") + 1] for line in lines] == [str(index) for index in range(tp)]
    assert len({line[line.index("--port") + 1] for line in lines}) == tp


def test_every_port_lies_in_the_window_and_what_sglang_derives_has_room() -> None:
    ports = Ports(20000)
    used = {*(ports.http(member) for member in range(MOST_MEMBERS)), ports.nccl, ports.rendezvous}
    assert len(used) == MOST_MEMBERS + 2
    assert max(used) + 6 + 8 < 20000 + WINDOW
