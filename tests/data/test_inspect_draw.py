"""Pictures: boxes where the manifest says, readable labels, files that stay in their folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from tests.data.inspect_manifests import concept, manifest_of, png, row
from xvlm_data.errors import UserError
from xvlm_data.inspect.draw import (
    BOXES_SHOWN,
    COLOURS,
    LEGIBLE_SIDES,
    draw_boxes,
    draw_concepts,
    draw_rows,
    legible,
    read_rows,
    safe_name,
)

RED = (255, 0, 0)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def blank(width: int = 800, height: int = 600) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def test_box_edges_have_the_colour_and_nothing_else_does() -> None:
    image = blank()
    # x from 200 to 600, y from 150 to 450
    drawn = pixels(draw_boxes(image, [(0.5, 0.5, 0.5, 0.5)], [""], ["#ff0000"]))
    red = (drawn == RED).all(axis=2)
    ys, xs = np.nonzero(red)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (200, 599, 150, 449)
    for y, x in ((150, 400), (449, 400), (300, 200), (300, 599)):
        assert red[y, x]
    assert not red[160:440, 210:590].any()
    assert (drawn[~red] == 255).all()
    assert (pixels(image) == 255).all()  # the original is left alone


def test_dashed_lines_have_gaps_on_the_same_edges() -> None:
    boxes = [(0.25, 0.5, 0.4, 0.8), (0.75, 0.5, 0.4, 0.8)]
    drawn = draw_boxes(blank(), boxes, ["", ""], ["#ff0000"] * 2, dashed=[False, True])
    red = (pixels(drawn) == RED).all(axis=2)
    ys, xs = np.nonzero(red[:, 400:])
    assert (xs.min() + 400, xs.max() + 400, ys.min(), ys.max()) == (440, 759, 60, 539)
    assert red[60, 40:360].all()
    assert 0.3 < red[60, 440:760].mean() < 0.7
    assert 0.3 < red[60:540, 759].mean() < 0.7


@pytest.mark.parametrize("box", [(0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.1, 0.1), (9.0, 9.0, 1.0, 1.0)])
def test_degenerate_boxes_are_drawn_at_the_border(box: tuple[float, ...]) -> None:
    drawn = pixels(draw_boxes(blank(), [box], ["label"], ["#ff0000"]))
    assert (drawn == RED).all(axis=2).any()


def test_boxes_that_are_not_finite_are_left_out() -> None:
    boxes = [(float("nan"), 0.5, 0.1, 0.1), (0.5, 0.5, float("inf"), 0.1)]
    assert (pixels(draw_boxes(blank(), boxes, ["a", "b"], ["red", "red"])) == 255).all()
    assert draw_boxes(blank(), [], [], []).size == (800, 600)


def test_labels_of_equal_boxes_do_not_cover_each_other() -> None:
    colours = ["#ff0000", "#00ff00", "#0000ff", "#00ffff", "#ff00ff"]
    box = (0.5, 0.5, 0.5, 0.5)
    alone, together = [], pixels(draw_boxes(blank(), [box] * 5, ["mmmm"] * 5, colours))
    plain = pixels(draw_boxes(blank(), [box] * 5, [""] * 5, colours))
    for colour in colours:
        rgb = ImageColor.getrgb(colour)
        alone.append(int(((together == rgb).all(axis=2) & ~(plain == rgb).all(axis=2)).sum()))
    assert min(alone) > 0.8 * max(alone)  # the backgrounds of all labels, whole


@pytest.mark.parametrize("place", [(0.01, 0.01), (0.99, 0.99), (0.99, 0.01), (0.01, 0.99)])
def test_labels_stay_within_the_picture(place: tuple[float, float]) -> None:
    def background(x: float, y: float) -> int:
        drawn = draw_boxes(blank(), [(x, y, 0.02, 0.02)], ["a long label, whole"], ["#ff0000"])
        return int((pixels(drawn) == RED).all(axis=2).sum())

    middle = background(0.5, 0.5)
    assert background(*place) > 0.9 * middle  # nothing is cut off but what covers the box itself


def test_small_pictures_are_enlarged_and_large_ones_reduced() -> None:
    assert legible(blank(64, 32)).size == (640, 320)
    assert legible(blank(1, 1)).size == (640, 640)
    assert legible(blank(700, 10)).size == (700, 10)
    assert max(legible(blank(5000, 100)).size) == LEGIBLE_SIDES[1]


def test_concepts_have_the_colour_of_their_granularity_and_captions_a_strip() -> None:
    concepts = [
        concept("two shapes", "image"),
        concept("left of it", "region", (0.25, 0.5, 0.3, 0.5)),
        concept("square", "object", (0.75, 0.5, 0.3, 0.5)),
    ]
    drawn = draw_concepts(blank(), concepts, "made/1")
    assert drawn.width == 800 and drawn.height > 600
    found = pixels(drawn)
    # inside the left lines of the two boxes
    assert tuple(found[400, 81]) == ImageColor.getrgb(COLOURS["region"])
    assert tuple(found[400, 481]) == ImageColor.getrgb(COLOURS["object"])
    assert (found[600:] < 128).any()  # the caption, black on white
    assert draw_concepts(blank(), concepts[1:]).size == (800, 600)


def test_what_is_left_out_is_told() -> None:
    many = [concept(f"t{i}", "object") for i in range(BOXES_SHOWN)]
    assert draw_concepts(blank(), many).height == 600
    assert draw_concepts(blank(), [*many, concept("more", "object")]).height > 600
    crowd = [concept("r", "region", (0.25, 0.5, 0.2, 0.2))] * 99
    crowd += [concept("o", "object", (0.75, 0.5, 0.2, 0.2))] * 9
    found = pixels(draw_concepts(blank(), crowd))
    assert (found == ImageColor.getrgb(COLOURS["object"])).all(axis=2).any()


@settings(max_examples=25)
@given(st.text(max_size=300), st.sampled_from([(1, 1), (3, 900), (640, 5)]))
def test_any_text_on_any_shape_can_be_drawn(text: str, size: tuple[int, int]) -> None:
    concepts = [concept(text, "image"), concept(text, "region"), concept(None, "object")]
    draw_concepts(blank(*size), concepts, text)


@given(st.text() | st.sampled_from(["../../etc/passwd", "/abs", "..", "a/../b", "C:\\x", "\x00"]))
def test_safe_names_are_one_visible_path_component(text: str) -> None:
    name = safe_name(text)
    assert 0 < len(name) <= 80
    assert name.isascii() and not set(name) & set("/\\:\x00 ") and not name.startswith(".")


def test_rows_are_drawn_evenly_and_always_the_same(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, *[row(i) for i in range(10)])
    first = draw_rows(manifest, 3, tmp_path / "out" / "deep")
    assert [path.name for path in first] == [
        "00000001-made_1.png",
        "00000005-made_5.png",
        "00000008-made_8.png",
    ]
    content = [path.read_bytes() for path in first]
    assert [
        path.read_bytes() for path in draw_rows(manifest, 3, tmp_path / "out" / "deep")
    ] == content
    assert sorted(p.name for p in first[0].parent.iterdir()) == [p.name for p in first]
    assert len(draw_rows(manifest, 99, tmp_path / "all")) == 10
    with Image.open(first[0]) as drawn:
        assert drawn.format == "PNG"


def test_hostile_ids_stay_in_the_folder(tmp_path: Path) -> None:
    ids = ["../../escape", "/abs/olute", "..", "a\x00b", "made/" + "x" * 500, "made/1", "made_1"]
    manifest = manifest_of(tmp_path, *[row(id=name) for name in ids])
    out = tmp_path / "deep" / "out"
    drawn = draw_rows(manifest, 99, out)
    assert len(set(drawn)) == len(ids)
    assert {path.parent for path in drawn} == {out}
    everything = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert everything == {tmp_path / "made.parquet", *drawn}


def test_rows_are_read_from_their_row_groups(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, *[row(i) for i in range(8)])  # row groups of 3
    assert [found["id"] for found in read_rows(manifest, [0, 2, 3, 7])] == [
        "made/0",
        "made/2",
        "made/3",
        "made/7",
    ]


@pytest.mark.parametrize(
    "image",
    [None, {"bytes": None, "path": "nowhere/a.jpg"}, {"bytes": png()[:60], "path": None}],
)
def test_an_image_that_cannot_be_drawn_is_one_line(
    tmp_path: Path, image: dict[str, object] | None
) -> None:
    manifest = manifest_of(tmp_path, row(7, image=image))
    with pytest.raises(
        UserError, match=r"made\.parquet row 0 \(made/7\): .*--image-root"
    ) as caught:
        draw_rows(manifest, 1, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make this folder"):
        draw_rows(manifest_of(tmp_path, row()), 1, tmp_path / "file")
