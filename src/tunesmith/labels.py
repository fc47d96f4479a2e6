"""Where the names of points stand in a chart, so that none lies on another, on a point or outside.

    places({1: ("int4", 310.0, 120.0), 2: ("nf4", 316.0, 131.0)}, width=800, height=330)    # {1: "middle left", 2: "middle right"}

In pixels from the upper left corner of the drawn area; the result is in plotly's words. Whoever has the fewest free places chooses
first; where nothing is free, the place that covers least. Offsets are plotly's own (drawing/index.js, textPointPosition).
"""

from collections.abc import Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

LETTER, LINE = 7.3, 13.0  # of the page's 13-pixel font; letters differ, these are about the widest of names such as ours
RADIUS = 4.5  # of a point
GAP = RADIUS / 0.8 + 1  # from a point's middle to its name
POSITIONS = (  # as one prefers to read them
    "middle right", "middle left", "top center", "bottom center", "top right", "bottom right", "top left", "bottom left",
)  # fmt: skip
Box = tuple[float, float, float, float]  # left, top, right, bottom


def places(points: Mapping[K, tuple[str, float, float]], width: float, height: float) -> dict[K, str]:
    """The textposition of each point (its name, x, y); with few of them there is always one that meets nothing."""
    marks = {key: (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for key, (_, x, y) in points.items()}
    chosen: dict[K, str] = {}
    taken: list[Box] = []

    def cost(key: K, position: str) -> float:
        box = box_of(*points[key], position)
        outside = common(box, box) - common(box, (0.0, 0.0, width, height))
        return outside + sum(common(box, other) for other in [*(mark for k, mark in marks.items() if k != key), *taken])

    while len(chosen) < len(points):
        costs = {key: [cost(key, position) for position in POSITIONS] for key in points if key not in chosen}
        key = min(costs, key=lambda one: costs[one].count(0))
        chosen[key] = POSITIONS[costs[key].index(min(costs[key]))]
        taken.append(box_of(*points[key], chosen[key]))
    return {key: chosen[key] for key in points}


def box_of(name: str, x: float, y: float, position: str) -> Box:
    """What a name covers."""
    vertical, horizontal = position.split()
    length = LETTER * len(name)
    left = {"right": x + GAP, "left": x - GAP - length, "center": x - length / 2}[horizontal]
    top = {"middle": y - LINE / 2, "top": y - GAP - LINE, "bottom": y + GAP}[vertical]
    return left, top, left + length, top + LINE


def common(one: Box, other: Box) -> float:
    """The area that two boxes share."""
    across, down = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    return across * down if across > 0 and down > 0 else 0.0
