"""The launches of one recorded step in order, by the profiler: what runs beside what, and what waits.

    python scripts/gpu_timeline.py --out DIR [--shapes abc]

Writes `timeline_SHAPE_exact.txt` and `timeline_SHAPE_auxk.txt`: when each launch began (us), how long it took, how long
after the end of all before it (less than 0: beside one of them), and its name.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from saetools.training.captured import room_for
from scripts.gpu_measure import LR, SHAPES, random_step

N_STEPS = 4


def table(events: Sequence[Any]) -> str:
    """A line for each event, which are in order of their beginning."""
    first = last = events[0].time_range.start
    lines = []
    for event in events:
        start, end = event.time_range.start, event.time_range.end
        lines.append(f"{start - first:9.1f} {end - start:8.1f} {start - last:8.1f}  {event.name[:110]}")
        last = max(last, end)
    return "\n".join(lines)


def timeline(shape: str, settings: dict[str, Any], dead: float) -> str:
    """Of a step in the middle of a few."""
    step, batches = random_step(shape, settings, dead)
    step.capture()

    def run() -> None:
        for batch in batches[:N_STEPS]:
            step.set_rates([LR])
            step.load(batch)
            step.replay()
        torch.cuda.synchronize()

    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
    events = [event for event in profile.events() if str(event.device_type).endswith("CUDA")]
    events.sort(key=lambda event: event.time_range.start)
    each = len(events) // N_STEPS
    tiles = f"{step.backward.measuring}\n{step.backward.updating}\n"
    return tiles + table(events[2 * each : 3 * each + 3]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shapes", default="abc", help="which of a, b, c")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device is visible to torch")
    options.out.mkdir(parents=True, exist_ok=True)
    for shape in options.shapes:
        F = SHAPES[shape][2]
        helped = {"aux_weight": 1 / 32, "capacity": room_for(int(F * 0.1), F)}
        for name, settings, dead in (("exact", {}, 0.0), ("auxk", helped, 0.1)):
            torch.cuda.empty_cache()
            (options.out / f"timeline_{shape}_{name}.txt").write_text(timeline(shape, settings, dead))


if __name__ == "__main__":
    main()
