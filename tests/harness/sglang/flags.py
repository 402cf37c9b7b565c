"""Parses command lines by SGLang's own parser. Executed by an interpreter that has SGLang: `python flags.py < lines.json`; nothing is started.

Standard input: a JSON list of command lines (what follows `-m sglang.launch_server`). Standard output: one JSON object, `version`, `parsed` (for
each line the values that the parser made of it, or the error as a text) and `flags` (of each flag on the lines: the number of its values, and its
choices). With an older wheel's folder first on PYTHONPATH it is that version's parser, with this environment's dependencies.
"""

import argparse
import contextlib
import io
import json
import os
import sys


def register_again():
    """Older SGLangs register models that this transformers knows already."""
    from transformers.models.auto.configuration_auto import _LazyConfigMapping

    usual = _LazyConfigMapping.register
    _LazyConfigMapping.register = lambda self, key, value, exist_ok=False: usual(self, key, value, exist_ok=True)


def parsed(parser, line):
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = vars(parser.parse_args(line))
    except SystemExit:
        return said.getvalue().strip().rpartition("\n")[2]
    return {name: value for name, value in found.items() if isinstance(value, str | int | float | bool | None)}


def facts(action):
    """The values that a flag takes (0: it is a switch), and those that it accepts."""
    values = 0 if action.nargs == 0 else 1
    return {"values": values, "choices": list(action.choices) if action.choices and len(list(action.choices)) < 50 else None}


def main():
    lines = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)  # what SGLang says while it is imported is nobody's answer
    register_again()
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(prog="sglang")
    ServerArgs.add_cli_args(parser)
    known = {flag: action for action in parser._actions for flag in action.option_strings}
    used = sorted({word for line in lines for word in line if word.startswith("--")})
    said = {"parsed": [parsed(parser, line) for line in lines], "flags": {flag: facts(known[flag]) for flag in used if flag in known}}
    os.write(out, json.dumps(said).encode())


if __name__ == "__main__":
    main()
