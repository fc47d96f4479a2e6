"""Names of points in a chart never lie on each other, on another point or outside, where there is room at all."""

from collections.abc import Mapping
from math import log10

from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.labels import RADIUS, Box, box_of, common, places

WIDTH, HEIGHT = 820.0, 320.0
# name, bits, percent: stories260k and acorn with int4 clipped, as their studies measured them
STORIES = [
    ("int8", 8.424, 0.349), ("affine8", 8.53, 0.392), ("int6", 8.514, 0.586), ("int5", 8.514, 2.772), ("int4", 4.514, 20.3),
    ("affine4", 4.643, 12.34), ("nf4", 4.514, 10.58), ("nf4 double", 4.138, 10.45), ("fp4 double", 4.138, 24.2), ("int3", 4.514, 193.6),
    ("affine3", 4.643, 70.36), ("int2", 2.514, 11614.0), ("affine2", 2.643, 2199.0),
]  # fmt: skip
ACORN = [
    ("int8", 8.106, 0.1), ("affine8", 8.132, 0.1), ("int6", 8.5, 0.19), ("int5", 8.5, 0.1), ("int4", 4.5, 0.1), ("affine4", 4.625, 6.69),
    ("nf4", 4.5, 4.273), ("nf4 double", 4.127, 4.281), ("fp4 double", 4.127, 2.874), ("int3", 4.5, 26.15), ("affine3", 4.625, 16.87),
    ("int2", 2.5, 733.3), ("affine2", 2.625, 158.9), ("int4 clip 98", 4.5, 4.621),
]  # fmt: skip
Points = Mapping[int, tuple[str, float, float]]


def in_pixels(study: list[tuple[str, float, float]]) -> Points:
    """The points as the chart draws them, the height on a logarithmic axis."""
    top, least = max(log10(y) for _, _, y in study) + 0.2, -1.2
    return {n: (name, WIDTH * (x - 1.9) / 7.2, HEIGHT * (top - log10(y)) / (top - least)) for n, (name, x, y) in enumerate(study)}


def covered(points: Points, chosen: Mapping[int, str]) -> list[tuple[str, str]]:
    """(a name, what it covers)."""
    boxes = {key: box_of(*points[key], chosen[key]) for key in points}
    marks: dict[int, Box] = {key: (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for key, (_, x, y) in points.items()}
    pairs = [(a, b) for a in points for b in points if a != b and (common(boxes[a], boxes[b]) or common(boxes[a], marks[b]))]
    found = [(points[a][0], points[b][0]) for a, b in pairs]
    return found + [(points[key][0], "the edge") for key, box in boxes.items() if common(box, (0, 0, WIDTH, HEIGHT)) < common(box, box)]


def test_the_names_of_real_studies_stand_apart():
    for study in (STORIES, ACORN):
        points = in_pixels(study)
        assert covered(points, places(points, WIDTH, HEIGHT)) == []
        assert covered(points, dict.fromkeys(points, "middle right")) != [], "it is not so by itself"


def test_a_name_by_itself_stands_on_the_right_and_at_the_edge_on_the_left():
    assert places({0: ("int4", 100.0, 100.0), 1: ("affine8", WIDTH - 5, 200.0)}, WIDTH, HEIGHT) == {0: "middle right", 1: "middle left"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(20, WIDTH - 20), st.floats(20, HEIGHT - 20)), min_size=1, max_size=20))
def test_every_point_gets_a_place_whatever_the_crowd(spots):
    points = {n: (f"name {n}", x, y) for n, (x, y) in enumerate(spots)}
    chosen = places(points, WIDTH, HEIGHT)
    assert list(chosen) == list(points)
    alone = dict.fromkeys(points, "middle right")
    assert len(covered(points, chosen)) <= len(covered(points, alone))
