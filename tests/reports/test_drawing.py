"""Pictures that stand on light and dark pages, reproducibly, with text that stays text."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pandas as pd
import pytest

from reports.drawing import LIGHT, THEME, label_ends, sheet, short, token_axis, value_axis

DATA = pd.DataFrame({"x": [1]})


def draw(name="costs"):
    with sheet() as page:
        page.axes.plot([1024, 8192], [1, 9], color=LIGHT["longcot"])
        token_axis(page.axes, [1024, 8192])
        value_axis(page.axes, "seconds")
        label_ends(page, [(8192, 9.0, "LongCoT <1>", LIGHT["longcot"]), (8192, 9.1, "Delethink", LIGHT["delethink"])])
        return page.drawing(name, "A title", "A caption", DATA)


@pytest.fixture(scope="module")
def drawing():
    return draw()


def texts(svg):
    found = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(text.itertext()).strip() for text in found]


@pytest.mark.parametrize(
    ("tokens", "said"), [(100, "100"), (1024, "1k"), (1536, "1.5k"), (98304, "96k"), (1 << 20, "1M"), (1187.8, "1.16k")]
)
def test_tokens_are_labelled_as_people_say_them(tokens, said):
    assert short(tokens) == said


def test_text_stays_text_and_is_escaped(drawing):
    assert {"LongCoT <1>", "Delethink", "1k", "8k", "thinking tokens per trace", "seconds"} <= set(texts(drawing.svg))
    assert "sans-serif" in drawing.svg


def test_labels_at_curve_ends_do_not_overlap(drawing):
    places = re.findall(r'y="([-\d.]+)"[^>]*>\s*(?:LongCoT|Delethink)', drawing.svg)
    if not places:
        places = re.findall(r"translate\([-\d.]+ ([-\d.]+)\)[^>]*>(?:LongCoT|Delethink)", drawing.svg)
    first, second = map(float, places)
    assert abs(first - second) >= 12  # points: more than a line of text


def test_the_same_picture_is_the_same_bytes(drawing):
    assert (draw().svg, draw().png) == (drawing.svg, drawing.png)


def test_the_dark_variant_has_no_light_colour_left(drawing):
    assert LIGHT["longcot"] in drawing.svg
    assert THEME["longcot"][1] in drawing.dark
    assert not any(light in drawing.dark for light in LIGHT.values())
    assert texts(drawing.dark) == texts(drawing.svg)


def test_the_inline_variant_takes_colours_from_the_page_and_keeps_its_ids_to_itself(drawing):
    assert "var(--longcot)" in drawing.inline
    assert not re.search(r"(fill|stroke): #", drawing.inline)
    ids = re.findall(r' id="([^"]+)"', drawing.inline)
    assert ids
    assert all(i.startswith("costs-") for i in ids)
    assert all(f' id="{target}"' in drawing.inline for target in re.findall(r"url\(#([^)]+)\)", drawing.inline))
    ElementTree.fromstring(drawing.inline)


def contrast(one, other):
    """WCAG 2 contrast of two colours."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("role", [role for role in THEME if role not in {"paper", "rule"}])
def test_text_colours_are_readable_on_both_papers(role):
    for colour, paper in zip(THEME[role], THEME["paper"], strict=True):
        assert contrast(colour, paper) >= 4.5
