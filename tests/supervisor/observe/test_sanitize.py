"""Hostile text becomes one harmless line."""

from hypothesis import given
from hypothesis import strategies as st

from supervisor.observe.sanitize import CONTROLS, one_line, plain, plain_value


def test_escape_sequences_and_controls_go() -> None:
    assert plain("a\x1b[31;1mred\x1b[0m\x1b]0;title\x07b\x1b(B\x9b2Jc\x00\u202ed\u2028e\x7f") == "aredbcde"
    assert plain("half \x1b[") == "half "
    assert one_line("a\r\nb\tc") == "a\\nb c"


def test_it_is_cut() -> None:
    assert plain("x" * 50, 10) == "x" * 10 + "… (30 more)", "what is far beyond the cut is not even counted"


@given(st.text())
def test_any_text_is_one_line_that_cannot_move_the_cursor(text: str) -> None:
    line = one_line(text)
    assert len(line.splitlines()) <= 1
    assert not CONTROLS.search(line)
    line.encode()


class Rude:
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_any_value_becomes_json() -> None:
    deep: list[object] = []
    deep.append(deep)
    value = {"a": {1, 2}, 3: b"x", "deep": deep, "rude": Rude(), "long": list(range(100)), "huge": 10**50}
    cleaned = plain_value(value)
    assert cleaned["rude"] == "<Rude: RuntimeError>"
    assert cleaned["long"][-1] == "… (36 more)"
    assert cleaned["huge"] == "a very large number"
    assert cleaned["3"] == "b'x'"
