"""This module says what becomes of a sample in flight when weights are published: `on_publish` and `max_version_lag` of the TOML."""

from dataclasses import dataclass
from typing import Final, Literal, get_args

from engines.gateway.core.records import Sample

OnPublish = Literal["continue", "restart", "finish"]
ON_PUBLISH: Final[tuple[OnPublish, ...]] = get_args(OnPublish)


@dataclass(frozen=True, slots=True)
class PublishPolicy:
    """`continue`: what runs goes on under the new weights. `restart`: it is begun anew under them. `finish`: it ends under the old
    ones, and what is interrupted before is begun anew. In every case nothing goes on that was begun more than `max_lag` versions ago;
    but an answer of which a client has been sent tokens goes on: they cannot be taken back.
    """

    on_publish: OnPublish = "continue"
    max_lag: int | None = None

    def must_stop(self, sample: Sample, newest: int) -> bool:
        """Whether the sample, which runs, may not run on where it is."""
        return not sample.streamed and not self._within(newest - sample.born, moved=False)

    def must_restart(self, sample: Sample, newest: int) -> bool:
        """Whether the sample, which was interrupted or never ran, may not go on from its tokens under the newest weights."""
        return bool(sample.ids) and not sample.streamed and not self._within(newest - sample.born, moved=True)

    def _within(self, lag: int, *, moved: bool) -> bool:
        if self.on_publish == "restart" or (self.on_publish == "finish" and moved):
            return lag <= 0
        return self.max_lag is None or lag <= self.max_lag
