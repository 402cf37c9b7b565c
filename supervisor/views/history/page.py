"""The page of a run: one HTML file with style, data and script (`page.js`: what a browser does, how often it reads on) in it.

It has no outside address, and needs no network.

Data is JSON in an element that no browser runs, with every character escaped that could end the element. The policy of the page names its
one script by hash, so that even markup that found its way in could run nothing.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from supervisor.views.history.page_data import PageData

_HERE: Final = Path(__file__).parent
_ESCAPED: Final = {b"<": b"\\u003c", b">": b"\\u003e", b"&": b"\\u0026", "\u2028".encode(): b"\\u2028", "\u2029".encode(): b"\\u2029"}
NOTHING: Final = "'none'"
"""What a page of its own may connect to."""


def data_json(data: PageData) -> bytes:
    """Return the data as JSON that can stand within an HTML element."""
    text = msgspec.json.encode(data)
    for character, escaped in _ESCAPED.items():
        text = text.replace(character, escaped)
    return text


def page(data: PageData, connect: str = NOTHING) -> bytes:
    """Return the whole page. `connect` is what its script may fetch from, as a Content-Security-Policy says it."""
    before, after = _around(connect)
    return before + data_json(data) + after


@cache
def _around(connect: str) -> tuple[bytes, bytes]:
    """Return what stands before and behind the data."""
    template, style, script = ((_HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js"))
    parts = {"CONNECT": connect, "LIVE": "" if connect == NOTHING else "yes"}
    parts |= {"SCRIPT_HASH": _hash(script), "STYLE_HASH": _hash(style), "STYLE": style, "SCRIPT": script}
    for name, part in parts.items():
        template = template.replace(f"@@{name}@@", part)
    before, mark, after = template.partition("@@DATA@@")
    assert mark, "page.html has no place for the data"
    return before.encode(), after.encode()


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
