"""This module says what differs between SGLang's versions, as far as it concerns us: one row a change. PURE.

Tested is 0.5.23. A newer version is treated like the newest row, with a warning; older ones than the first row lack the calls we need.
"""

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

TESTED: Final = "0.5.23"


class Release(NamedTuple):
    major: int
    minor: int
    patch: int
    post: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}" + (f".post{self.post}" if self.post else "")


class UnknownVersion(Exception):
    """The engine's SGLang cannot be driven: `problem` names its version, `remedy` says what to do (in lower case, without a full stop)."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem, self.remedy = problem, remedy
        super().__init__(f"{problem}: {remedy}")


@dataclass(frozen=True, slots=True)
class Profile:
    """Since release `since`, SGLang behaves like this."""

    since: Release
    checksum: bool
    """`/weights_checker` tells a checksum."""
    prefill_graph_choice: bool
    """Has `--cuda-graph-backend-prefill`; its default cannot be released, and start-up raises where graphs are to be releasable."""
    spans: bool
    """Answers say which tokens were made by which weights; before, only which weights were there at the end."""
    retract_flushes: bool
    """The cache can be flushed while retracted requests wait. Before, a load in place must abort what runs (it goes on as a new span)."""
    incremental: bool
    """`--incremental-streaming-output` sends each token once. Without it a stream is quadratic in its length."""


PROFILES: Final = (
    Profile(Release(0, 5, 9), checksum=False, prefill_graph_choice=False, spans=False, retract_flushes=False, incremental=False),
    Profile(Release(0, 5, 12), checksum=True, prefill_graph_choice=False, spans=False, retract_flushes=False, incremental=False),
    Profile(Release(0, 5, 16), checksum=True, prefill_graph_choice=True, spans=False, retract_flushes=False, incremental=False),
    Profile(Release(0, 5, 19), checksum=True, prefill_graph_choice=True, spans=True, retract_flushes=False, incremental=False),
    Profile(Release(0, 5, 21), checksum=True, prefill_graph_choice=True, spans=True, retract_flushes=True, incremental=False),
    Profile(Release(0, 5, 23), checksum=True, prefill_graph_choice=True, spans=True, retract_flushes=True, incremental=True),
)
NEWEST: Final = PROFILES[-1]


def release(version: str) -> Release | None:
    """Parse `0.5.23`, `0.5.9.post1`, `0.6.0rc1+g12`. Return None for what is no version."""
    if (match := re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})(?:\.?post(\d{1,6}))?", version)) is None:
        return None
    return Release(*(int(part or 0) for part in match.groups()))


def profile(version: str) -> tuple[Profile, str]:
    """Return how this version behaves, and a warning ("" if there is none). Raises UnknownVersion for one that is too old."""
    known = release(version)
    if known is None:
        return NEWEST, f"SGLang calls itself {version!r}, which is no version that we know how to read: treated like {NEWEST.since}"
    if known < PROFILES[0].since:
        raise UnknownVersion(f"SGLang {version} lacks calls that we need", f"install {PROFILES[0].since} or newer (tested: {TESTED})")
    newest = max((row for row in PROFILES if row.since <= known), key=lambda row: row.since)
    return newest, f"SGLang {version} is newer than any that we know: treated like {NEWEST.since}" if known > NEWEST.since else ""
