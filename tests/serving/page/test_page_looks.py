"""The appearance of the chat page: phone widths, themes and contrast."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect


@pytest.mark.parametrize("width", [320, 390])
def test_page_on_a_phone_scrolls_vertically_only(visit, stand_in, width):
    stand_in.answer = (
        "A" * 300
        + "\n\n```python\n"
        + "x = 1; " * 40
        + "\n```\n\n"
        + "|a" * 30
        + "|\n"
        + "|-" * 30
        + "|\n\n[link](https://x.org/"
        + "a" * 200
        + ")"
    )
    page = visit(viewport={"width": width, "height": 640}, has_touch=True, is_mobile=True)

    page.say("B" * 200)

    inner = "(element) => element.scrollWidth - element.clientWidth"
    for selector in ("html", "#scroller", "#meter", "#header"):
        assert page.find(selector).evaluate(inner) <= 0, selector
    assert page.find("html").evaluate("(root) => root.clientWidth") == width
    page.find("#menu").tap()
    expect(page.find("#sidebar .begin")).to_be_in_viewport()
    page.find("#sidebar .begin").tap()
    expect(page.find("article")).to_have_count(0)


def test_theme_follows_the_system_until_the_user_chooses(visit):
    page = visit(color_scheme="dark")
    root = page.find("html")

    expect(root).to_have_css("background-color", "rgb(21, 23, 22)")
    page.find("#theme").click()
    expect(root).to_have_css("background-color", "rgb(253, 253, 251)")
    page.open()
    expect(root).to_have_css("background-color", "rgb(253, 253, 251)")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag(reading, theme):
    reading.page.emulate_media(color_scheme=theme)
    colours = reading.page.evaluate(
        """() => {
          const probe = document.body.appendChild(document.createElement("i"));
          const colour = (name) => {
            probe.style.color = `var(--${name})`;
            return getComputedStyle(probe).color.match(/[0-9]+/g).map(Number);
          };
          const names = ["paper", "side", "raised", "tint", "edge", "ink", "muted", "accent"];
          names.push("accent-tint", "on-accent", "problem", "problem-tint", "mark");
          const code = ["keyword", "string", "number", "name", "comment"];
          names.push(...code.map((name) => `code-${name}`));
          return Object.fromEntries(names.map((name) => [name, colour(name)]));
        }"""
    )

    def contrast(one: str, other: str) -> float:
        """Return the WCAG 2 contrast ratio: 4.5 is required for text, 3 for edges of controls."""
        luminances = []
        for name in (one, other):
            red, green, blue = [
                c / 255 / 12.92 if c < 11 else ((c / 255 + 0.055) / 1.055) ** 2.4
                for c in colours[name]
            ]
            luminances.append(0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05)
        return max(luminances) / min(luminances)

    for ground in ("paper", "side", "raised", "tint"):
        assert min(contrast(text, ground) for text in ("ink", "muted", "accent")) >= 4.5, ground
    assert contrast("ink", "accent-tint") >= 4.5
    assert contrast("ink", "mark") >= 4.5
    for part in ("keyword", "string", "number", "name", "comment"):
        assert contrast(f"code-{part}", "side") >= 4.5, part
    assert contrast("on-accent", "accent") >= 4.5
    assert contrast("problem", "problem-tint") >= 4.5
    assert contrast("problem", "paper") >= 4.5
    assert min(contrast("edge", ground) for ground in ("paper", "raised")) >= 3
