"""The map of all files in ARCHITECTURE.md: each room, each file, and the first sentence of its docstring.

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


def first_sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring, cut between two words where it is long."""
    line = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")
    sentence = re.split(r"(?<=\.)\s", line.removeprefix("This module ").removeprefix("This program "), maxsplit=1)[0].rstrip(".:")
    return sentence if len(sentence) <= LONGEST else sentence[:LONGEST].rsplit(" ", 1)[0] + " …"


def file_map() -> str:
    """Return the map as Markdown."""
    lines = []
    for tree in TREES:
        folders = sorted({path.parent for path in (CHECKOUT / tree).rglob("*.py") if "site" not in path.parts})
        for folder in folders:
            files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
            if files:
                lines += ["", f"`{folder.relative_to(CHECKOUT)}`", ""]
            lines += [f"- `{path.name}`: {first_sentence(path)}" for path in files]
    return "\n".join(lines[1:]) + "\n"


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{file_map()}{END}{after}")


if __name__ == "__main__":
    main()
