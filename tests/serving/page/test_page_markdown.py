"""Markdown on the chat page: rendering, untrusted input, and linear time."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("## A *title* ##", "<h4>A <em>title</em></h4>"),
        (
            "**a *b* c** ~~d~~ snake_case_name 2 * 3 * 4",
            "<p><strong>a <em>b</em> c</strong> <del>d</del> snake_case_name 2 * 3 * 4</p>",
        ),
        (
            "***a*** **a *b*** \\*c\\*",
            "<p><em><strong>a</strong></em> <strong>a <em>b</em></strong> *c*</p>",
        ),
        ("`a*b*` `` ` `` `open", "<p><code>a*b*</code> <code>`</code> `open</p>"),
        (
            "- a\n  - b\n\n- c\n\n3. d",
            "<ul><li><p>a</p><ul><li>b</li></ul></li><li><p>c</p></li></ul>"
            '<ol start="3"><li>d</li></ol>',
        ),
        ("1. a\n\n   b\n2. c", "<ol><li><p>a</p><p>b</p></li><li><p>c</p></li></ol>"),
        ("It was\n1986. Then\n- x", "<p>It was<br>1986. Then</p><ul><li>x</li></ul>"),
        ("> a\n> - b\n\nc", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote><p>c</p>"),
        ("a\n\n---\n***", "<p>a</p><hr><hr>"),
        ("a<br>b <br/> <b>c</b>", "<p>a<br>b <br> &lt;b&gt;c&lt;/b&gt;</p>"),
        (
            "|a|b|\n|-|-:|\n|c \\| d|`e`|\n|f|",
            '<div class="table" tabindex="0"><table>'
            '<thead><tr><th>a</th><th class="right">b</th></tr></thead>'
            '<tbody><tr><td>c | d</td><td class="right"><code>e</code></td></tr>'
            '<tr><td>f</td><td class="right"></td></tr></tbody></table></div>',
        ),
    ],
)
def test_markdown_becomes_elements(reading, text, html):
    assert reading.markdown(text) == html


@pytest.mark.parametrize(
    ("text", "href"),
    [
        ('[a **b**](https://x.org/c_(d) "title")', "https://x.org/c_(d)"),
        ("see https://x.org/a_b_c.", "https://x.org/a_b_c"),
        ("<https://x.org/?a=b>", "https://x.org/?a=b"),
        ("![a picture](https://x.org/a.png)", "https://x.org/a.png"),
        ("[write](mailto:a@x.org)", "mailto:a@x.org"),
    ],
)
def test_links_open_without_referrer(reading, text, href):
    html = reading.markdown(text)

    assert html.count("<a ") == 1
    assert f'<a href="{href}" title="{href}" rel="noopener noreferrer" target="_blank">' in html
    assert "<img" not in html


def test_code_is_shown_verbatim_and_copied(visit, stand_in):
    code = "for i in a:\n    print('<b>&amp;</b>')  # **not bold**"
    stand_in.answer = f"So:\n\n```python\n{code}\n```\n\nDone."
    page = visit(permissions=["clipboard-read", "clipboard-write"])

    page.say("Show me code.")
    page.page.get_by_role("button", name="Copy code").click()

    expect(page.find(".code .language")).to_have_text("python")
    assert page.find(".code code").text_content() == code
    expect(page.find(".code button")).to_have_class(re.compile("done"))
    assert page.page.evaluate("navigator.clipboard.readText()") == code


def test_code_is_coloured_once_it_is_complete(visit, stand_in):
    code = "def f(x):\n    return 'a<b>' + str(x)  # 1"
    stand_in.answer = (
        f"- So:\n  ```py\n  {code.replace(chr(10), chr(10) + '  ')}\n  ```\n\n```what\nx\n```"
    )
    page = visit()

    page.say("Show me code.")

    block = page.find(".code code").first
    expect(block.locator(".hl-keyword").first).to_have_text("def")
    expect(block.locator(".hl-string")).to_have_text("'a<b>'")
    assert block.text_content() == code
    expect(page.find(".code code").last).to_have_text("x")
    assert [url for url in page.urls if "/highlight/" in url and "python" in url]
    assert not [url for url in page.urls if "/katex/" in url]


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("Is \\(x^2 < y\\) or $a_1 * b$?", ["\\(x^2 < y\\)", "$a_1 * b$"]),
        ("\\[\n- x + *y*\n= 1\n\\]", ["\\[- x + *y*\n= 1\\]"]),
        ("So\n$$ x $$\nand $$y$$ too", ["$$x$$", "$$y$$"]),
        ("- a\n  $$\n  x\n  $$\n- b", ["$$x$$"]),
        ("> \\[ x \\]", ["\\[x\\]"]),
        ("It costs $5 or $6, not $7-$8, \\$x.", []),
        ("`$x$` and\n\n    $x$\n\n```\n$$x$$\n```", []),
        ("$$\nopen\n\n- a", []),
        ("$ x$, $x $, \\(\\) and $$$", []),
    ],
)
def test_formulas_are_found(reading, text, formulas):
    found = reading.page.evaluate(
        """async (text) => {
          const { renderMarkdown } = await import("./page/markdown.js");
          const element = document.createElement("div");
          renderMarkdown(element, text);
          return [...element.querySelectorAll(".math")].map((node) => node.textContent);
        }""",
        text,
    )

    assert found == formulas


def test_formulas_are_rendered_in_the_fonts_of_the_page(visit, stand_in):
    stand_in.answer = r"Here $\sqrt{x}$:" + "\n\n\\[ \\int_0^1 \\frac{a}{b} \\]\n\nand $\\nope{$."
    page = visit()

    page.say("Show me mathematics.")

    expect(page.find(".math .katex")).to_have_count(2)
    expect(page.find(".math.display math annotation")).to_have_text("\\int_0^1 \\frac{a}{b}")
    expect(page.find(".math.invalid")).to_have_text("$\\nope{$")
    page.page.evaluate("document.fonts.ready.then(() => true)")
    assert {"KaTeX_Main-Regular.woff2", "KaTeX_Size2-Regular.woff2"} <= {
        url.rpartition("/")[2] for url in page.urls
    }


def test_libraries_are_loaded_only_for_formulas_and_code(visit, stand_in):
    stand_in.answer = "No *formula*, `no code`."
    page = visit()

    page.say("Who?")

    assert not [url for url in page.urls if "/katex/" in url or "/highlight/" in url]


FORMULAS_THAT_ATTACK = r"""
$\href{javascript:hacked=1}{a}$ $\url{https://x.org}$ $\includegraphics{https://x.org/a.png}$
$\htmlStyle{position:fixed}{a}$ $\htmlData{a=b}{c}$ $\htmlClass{dropped-line}{a}$ $\htmlId{send}{a}$
$\fcolorbox{red}{blue}{a} \pmb{b}$ $\text{<img src=x onerror=hacked=1>}$
$\rule{9999em}{9999em}$ $\kern{-9999em}x$ $\color{url(https://x.org/a.png)}x$
$\def\a{\a\a}\a$
""".strip()


def test_formulas_cannot_inject_links_or_styles_or_leave_the_answer(visit, stand_in):
    stand_in.answer = FORMULAS_THAT_ATTACK + "\n\n$\\sum_i i$"
    page = visit()

    page.say("Attack.")
    expect(page.find(".math .katex").last).to_be_visible()

    found = page.page.evaluate(
        """() => {
          const nodes = [...document.querySelectorAll(".answer .body *")];
          return {
            links: nodes.filter((node) => node.matches("a, img, script, iframe")).length,
            styles: nodes.map((node) => node.getAttribute("style") ?? "").join(),
            attributes: [...new Set(nodes.flatMap((node) => node.getAttributeNames()))],
            hacked: typeof hacked,
          };
        }"""
    )
    assert found["links"] == 0
    assert "url" not in found["styles"] and "position: fixed" not in found["styles"]
    names = set(found["attributes"])
    assert not [name for name in names if name.startswith(("on", "src", "href", "data-", "id"))]
    assert found["hacked"] == "undefined"
    expect(page.find(".answer .body")).to_have_css("overflow", "clip")


def test_streamed_markdown_equals_complete_markdown(reading):
    text = (
        "# T\n\nSome **bold [link](https://x.org) text**\n- a\n  1. b\n\n```py\nx = '`'\n\ny\n"
        "```\n> q\n\n|a|b|\n|-|-|\n|c|d|\n\n~~~\nopen"
    )
    grown = [text[:length] for length in range(1, len(text) + 1)]

    assert reading.markdown(*grown) == reading.markdown(text)
    assert reading.markdown(*grown, *reversed(grown[5:])) == reading.markdown(text[:6])
    assert "<code>open</code>" in reading.markdown(text)


ATTACKS = """
<img src=x onerror="hacked=1"> <script>hacked=1</script> <svg onload=hacked=1>
<iframe src="//x.org"> [a](javascript:hacked=1) [b](JaVaScRiPt:hacked=1) [c](java\tscript:hacked=1)
[d]( javascript:hacked=1) [e](data:text/html,<script>hacked=1</script>) [f](vbscript:x)
[g](//x.org) [h](file:///etc/passwd) ![i](https://x.org/i.png) ![j](javascript:hacked=1)
<javascript:hacked=1> [k](blob:https://x.org/a) [l](https://x.org/" onclick="hacked=1)
[m](<https://x.org/" style="color:red>) https://x.org/"onclick=1 [n](https://you@x.org)
&lt;img src=x onerror=hacked=1&gt; **<b onclick=hacked=1>o</b>**
`<img src=x onerror=hacked=1>` [<img src=x onerror=hacked=1>](https://x.org)

| <img src=x onerror=hacked=1> | <style>*{display:none}</style> |
|---|---|
| <form action=//x.org><input> | [p](javascript:hacked=1) |

```"><img src=x onerror=hacked=1>
</code></pre><script>hacked=1</script>
```
""".strip()


def test_model_output_cannot_inject_html(visit, stand_in):
    stand_in.answer = ATTACKS
    page = visit()

    page.say("<img src=x onerror=hacked=1>")

    found = page.page.evaluate(
        """() => {
          const nodes = [...document.querySelectorAll("#messages article .body, .body *")];
          return {
            tags: [...new Set(nodes.map((node) => node.localName))],
            attributes: [...new Set(nodes.flatMap((node) => node.getAttributeNames()))],
            hrefs: nodes.filter((node) => node.localName === "a").map((node) => node.href),
            hacked: typeof hacked,
          };
        }"""
    )
    allowed = {"div", "p", "a", "br", "strong", "code", "pre", "table", "thead", "tbody", "tr"}
    allowed |= {"th", "td", "figure", "figcaption", "span", "button", "svg", "use"}
    assert set(found["tags"]) <= allowed
    assert not [name for name in found["attributes"] if name.startswith(("on", "style", "src"))]
    assert found["hrefs"] and all(href.startswith("https://x.org/") for href in found["hrefs"])
    assert found["hacked"] == "undefined"


@pytest.mark.parametrize(
    "piece",
    ["[", "![a](", "**a ", "*a _b ", "`", "a`", "> ", "- ", "|a\n|-\n", "<https://a", "](a", "~~"],
)
def test_rendering_time_is_linear_in_the_length(reading, piece):
    check_linear(reading, piece)


@pytest.mark.parametrize(
    "piece", ["$", "$a ", "$a$", "$$", "$$a\n", "\\(", "\\(a\\)", "\\[a\n", "\\[", "$$\na\n$$\n"]
)
def test_rendering_time_of_formulas_is_linear_in_the_length(reading, piece):
    check_linear(reading, piece)


def check_linear(reading, piece):
    browser = reading.page.context.new_cdp_session(reading.page)
    browser.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu_s() -> float:
        """Return the CPU time of the page's thread, which other programs do not affect."""
        metrics = browser.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")

    start_s = cpu_s()
    reading.markdown(piece * (100_000 // len(piece)))

    assert cpu_s() - start_s < 2  # 100,000 steps take a tenth; their square takes 10
