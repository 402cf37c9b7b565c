"""This module writes one line a pipeline to a terminal while a run is under way, beside the line that the log has for each step."""

from supervisor.observe.status import PipelineView, Status
from supervisor.views.status import reward


def line(view: PipelineView) -> str:
    """Return `p1  step 3/5  samples 192/256  engines 2/4  reward 0.085 → 0.412  weights v2`."""
    parts = [view.name, f"step {view.step}/{view.steps}"]
    if view.target:
        parts.append(f"samples {view.samples_done}/{view.target}")
    parts.append(f"engines {view.engines_awake}/{len(view.engines)}")
    if (text := reward(view.first_reward, view.reward)) is not None:
        parts.append(f"reward {text}")
    parts.append(f"weights v{view.weight_version}")
    if view.waits_for:
        parts.append(f"waits for {view.waits_for}")
    return "  ".join(parts)


class Progress:
    """Progress gives a pipeline's line at most every `every_s` seconds, and only if it differs."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every_s = every_s
        self._shown: dict[str, tuple[float, str]] = {}

    def __call__(self, status: Status, now: float) -> list[str]:
        """Return the lines that are worth printing now (`now` in seconds of any clock that only grows)."""
        lines = []
        for view in status.pipelines:
            text = line(view)
            then, old = self._shown.get(view.name, (float("-inf"), ""))
            if text != old and now - then >= self._every_s:
                self._shown[view.name] = (now, text)
                lines.append(text)
        return lines
