"""The map of all files in ARCHITECTURE.md: each room, each file, the first sentence of its docstring, and what it has for others.

`python -m tests.harness.file_map` writes it into the page; a test compares.
"""

import ast
import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "ARCHITECTURE.md"
BEGIN, END = "<!-- files -->\n", "<!-- end of files -->\n"
TREES = ("trainers", "engines", "supervisor")
LONGEST = 150
MOST_NAMES = 12


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring, cut between two words where it is long."""
    line = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    sentence = re.split(r"(?<=\.)\s", line.removeprefix("This module ").removeprefix("This program "), maxsplit=1)[0].rstrip(".:")
    return sentence if len(sentence) <= LONGEST else sentence[:LONGEST].rsplit(" ", 1)[0] + " …"


def public_names(path: Path) -> list[str]:
    """Return the names that a module has for others: its constants first (where a limit comes from), then classes and functions."""
    constants, others = [], []
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]) if name.isupper() and len(name) > 1:
                constants.append(name)
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                others.append(name)
    return [name for name in constants + others if not name.startswith("_") and name != "main"]


def _listed(names: list[str]) -> str:
    shown = [f"`{name}`" for name in names[:MOST_NAMES]] + ["…"] * (len(names) > MOST_NAMES)
    return f". {', '.join(shown)}" if shown else ""


def file_map() -> str:
    """Return the map as Markdown."""
    lines = []
    for tree in TREES:
        folders = sorted({path.parent for path in (CHECKOUT / tree).rglob("*.py") if "site" not in path.parts})
        for folder in folders:
            files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
            if files:
                lines += ["", f"`{folder.relative_to(CHECKOUT)}`", ""]
            lines += [f"- `{path.name}`: {first_sentence(path)}{_listed(public_names(path))}" for path in files]
    return "\n".join(lines[1:]) + "\n"


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{file_map()}{END}{after}")


if __name__ == "__main__":
    main()
