"""Time for all of it, and what is compared within a round."""

import time
from collections.abc import Callable, Mapping

from benchmarks.rows import Row, spread


class Budget:
    """Seconds that the whole plan may take; what begins after that is left out, and says so."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._end_s = clock() + seconds
        self._clock = clock

    @property
    def is_spent(self) -> bool:
        """Whether nothing more should begin."""
        return self._clock() >= self._end_s


def compare(
    runs: Mapping[str, Callable[[], float]], sizes: Mapping[str, int], rounds: int
) -> list[Row]:
    """Run everything in turn, `rounds` times after one that does not count.

    Args:
        runs: By name, what returns the seconds it took. The first is what the others are held
            against, within the same round.
        sizes: Bytes that each run moves.
        rounds: At least 1.

    Returns:
        A row for each run: `path`, `gb_s`, and `ratio` of its speed to the first's.
    """
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for counts in [False] + [True] * rounds:
        for name, run in runs.items():
            speed = sizes[name] / run() / 1e9
            if counts:
                speeds[name].append(speed)
    first = speeds[next(iter(runs))]
    return [
        {
            "path": name,
            **spread("gb_s", found),
            **spread("ratio", (ours / flat for ours, flat in zip(found, first, strict=True))),
            "rounds": rounds,
        }
        for name, found in speeds.items()
    ]
