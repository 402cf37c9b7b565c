"""Exit codes are documented where they are defined, and in the README."""

from pathlib import Path

from supervisor.errors import ExitCode, Mistake

README = Path(__file__).resolve().parents[2] / "README.md"


def test_every_exit_code_has_a_meaning_and_is_in_the_readme() -> None:
    text = README.read_text()
    for code in ExitCode:
        assert code.meaning
        assert f"| {code.value} | {code.meaning} |" in text


def test_a_mistake_is_one_line() -> None:
    mistake = Mistake("a.toml", "host.virtual", '"four"', "is a string", "Give a whole number.", 3)
    assert str(mistake) == 'a.toml:3: host.virtual = "four": is a string. Give a whole number.'
