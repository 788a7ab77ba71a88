"""Take the screenshots of the chat page in docs/assets.

    PYTHONPATH=tests:tests/serving/page python docs/screenshots.py docs/assets

The packaged model answers, except for formulas and code: that answer is scripted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import servers
from chat_page import ARGUMENTS, CHROMIUM, StandIn, Visit, serving
from playwright.sync_api import Browser, sync_playwright

from yocobit.pretrained import PROMPTS_OF_TINY
from yocobit.serving import ServerSettings

DESKTOP = {"viewport": {"width": 1280, "height": 720}}
PHONE = {
    "viewport": {"width": 390, "height": 740},
    "device_scale_factor": 1.5,
    "is_mobile": True,
    "has_touch": True,
}
ANSWER = r"""A row of ternary weights $w_k \in \{-1, 0, 1\}$ needs additions only:

$$ y_m = s_w s_x \sum_{k=1}^{K} w_{mk} \hat{x}_k, \qquad s_w = \frac{1}{MK} \sum_{m,k} |W_{mk}| $$

```python
def quantize(weights):
    scale = weights.abs().mean()  # one per matrix
    return (weights / scale).round().clip(-1, 1), scale
```

The integer sum is exact: $|\sum_k w_k \hat{x}_k| \le 127 K$."""


def main(folder: Path) -> None:
    settings = ServerSettings(threads=2)
    with sync_playwright() as playwright, servers.running(settings) as server:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        desktop(browser, server.url, folder)
        phone(browser, server.url, folder)
        formulas(browser, folder)
        browser.close()


def desktop(browser: Browser, url: str, folder: Path) -> None:
    visit = Visit(browser.new_context(**DESKTOP), url)
    set_seed(visit)
    take(visit, folder / "page-welcome.png")
    visit.say(PROMPTS_OF_TINY[0])
    visit.say("Go on.")
    visit.find(".again:visible").click()
    visit.wait()
    visit.find("#composer textarea").focus()
    take(visit, folder / "page.png")
    visit.page.emulate_media(color_scheme="dark")
    for question in PROMPTS_OF_TINY[1:]:
        visit.find(".begin").click()
        visit.say(question)
    visit.find("#sidebar .search").fill("heaven")
    take(visit, folder / "page-search-dark.png")


def phone(browser: Browser, url: str, folder: Path) -> None:
    visit = Visit(browser.new_context(**PHONE), url)
    set_seed(visit)
    visit.say(PROMPTS_OF_TINY[0])
    take(visit, folder / "page-phone.png")


def formulas(browser: Browser, folder: Path) -> None:
    stand_in = StandIn()
    stand_in.answer = ANSWER
    with serving(stand_in.app) as url:
        visit = Visit(browser.new_context(**DESKTOP), url)
        visit.say("Why are ternary weights cheap?")
        visit.find(".hl-keyword").first.wait_for()
        visit.find(".math .katex").last.wait_for()
        visit.page.evaluate("document.fonts.ready.then(() => true)")
        take(visit, folder / "page-formulas.png")


def take(visit: Visit, path: Path) -> None:
    visit.page.wait_for_timeout(300)  # transitions
    visit.page.screenshot(path=path)


def set_seed(visit: Visit) -> None:
    """Make the answers the same each time."""
    visit.page.evaluate("localStorage.setItem('yocobit.settings', JSON.stringify({ seed: 1 }))")
    visit.page.reload()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
