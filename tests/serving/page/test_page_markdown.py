"""Markdown on the chat page: rendering, untrusted input, and linear time."""

from __future__ import annotations

import re

import pytest
from chat_page import expect


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
    browser = reading.page.context.new_cdp_session(reading.page)
    browser.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu_s() -> float:
        """Return the CPU time of the page's thread, which other programs do not affect."""
        metrics = browser.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "ThreadTime")

    start_s = cpu_s()
    reading.markdown(piece * (100_000 // len(piece)))

    assert cpu_s() - start_s < 2  # 100,000 steps take a tenth; their square takes 10
