"""Do engines that say they have a version truly have its bytes? Engines of one pipeline have one shape: with the same weights they agree.

Which version an engine reports is a label that we gave it ourselves; only bytes prove that a load was whole. PURE.
"""

from typing import Final

from trainers.protocol.ids import EngineId, Incarnation, PipelineId, Version

EVERY: Final = 8
"""Of a life's syncs one in so many is verified, beside its first: a checksum reads all weights once."""


class Checksums:
    """What has been seen of each pipeline's newest versions."""

    def __init__(self) -> None:
        self._seen: dict[PipelineId, dict[Version, tuple[str, EngineId]]] = {}
        self._syncs: dict[EngineId, tuple[Incarnation, int]] = {}

    def due(self, engine: EngineId, incarnation: Incarnation) -> bool:
        """Count one sync. True for the first of each life, and now and then."""
        life, syncs = self._syncs.get(engine, (incarnation, 0))
        if life != incarnation:
            syncs = 0
        self._syncs[engine] = (incarnation, syncs + 1)
        return syncs % EVERY == 0

    def disagreement(self, engine: EngineId, version: Version, checksum: str) -> str | None:
        """Compare with the first that was seen of this version; remember it if it is the first. What differs, in words."""
        seen = self._seen.setdefault(engine.pipeline, {})
        for old in [known for known in seen if known < version - 1]:
            del seen[old]
        first, whose = seen.setdefault(version, (checksum, engine))
        if first == checksum:
            return None
        del seen[version]  # nobody knows which of the two is right; the next to load it is compared with nobody
        return f"checksum {checksum[:16]} of version {version} is not {first[:16]}, which {whose} has loaded"
