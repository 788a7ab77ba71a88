"""Chat templates: the dialect of transformers, one line for every failure, and limits."""

from __future__ import annotations

import datetime
import resource

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from yocobit.errors import ConfigError
from yocobit.text.chat_template import ChatTemplate, with_token_names

MESSAGES = [{"role": "user", "content": "hi <b>\n"}, {"role": "assistant", "content": "yo"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"b": 1, "a": [None]}}}]

assert transformers  # the tests follow its renderer


def render(template: str, messages=MESSAGES, **variables) -> str:
    return ChatTemplate(template, "t").render(messages, **variables)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% generation %}{{ m.content }} {% endgeneration %}{% endfor %}",
        "{%- for m in messages -%}\n{%- generation -%}\n {{ m.content }}"
        "{%- endgeneration %}{% endfor %}",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{% endgeneration %}{{ x }}",
        "{{ messages[0] | tojson(sort_keys=true) }}",
        "{{ tools | tojson(separators=(',', ':')) }}",
        "{{ tools | tojson(indent=2) }}",
        "{{ 'é' | tojson(ensure_ascii=true) }}{{ 'é<' | tojson }}",
        "{% if tools is not none %}{{ tools[0].function.name }}{% endif %}",
        "{% if documents is none %}none{% endif %}{% if x is defined %}x{% endif %}",
        "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}",
        "{% for m in messages %}{% if loop.last %}{% break %}"
        "{% endif %}{{ loop.index }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}"
        "{% endif %}{{ m.role }}{% endfor %}",
        "{% for k, v in messages[0].items() %}{{ k }}={{ v }},{{ loop.length }}{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ loop.revindex }}{% else %}none{% endfor %}",
        "{% for m in messages recursive %}{{ loop.depth }}{% endfor %}",
        "{% set ns = namespace(a=0, b='') %}{% for m in messages %}{% set ns.a = ns.a + 1 %}"
        "{% set ns.b = ns.b ~ m.role %}{% endfor %}{{ ns.a }}{{ ns.b }}",
        "{% macro f(x, y='d') %}[{{ x }}{{ y }}]{% endmacro %}{{ f(1) }}{{ f('a', y=2) }}",
        "{% set t %}a{{ 1 }}{% endset %}{{ t | upper }}{{ t ~ 1 ~ none ~ [1, 'x'] }}",
        "{{ messages | map(attribute='role') | join(', ') }}{{ ['a', 1] | join }}",
        "{{ messages[0].content.split('<')[0] ~ 'abc'[::-1] ~ '%s:%d' % ('a', 3) }}",
        "{{ '{:>5}|{}'.format('a', 1) }}{{ '%5s' | format('x') }}{{ 'x' * 3 }}{{ [1] * 2 }}",
        "{{ 'a b' | replace(' ', '_') }}{{ 'a'.replace('a', 'bb') }}{{ 'a' | center(5) }}|",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
        "{{ dict(a=1) | tojson }}{{ range(3) | list }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ 5 % 3 }}",
        "{{ 'ab\ncd' | indent(2) }}{{ '  a ' | trim }}{{ messages | length }}{{ none }}{{ [none] }"
        "}",
        "{% if messages[0]['content'] is string and 'hi' in messages[0].content %}yes{% endif %}",
        "{{ messages[1].tool_calls is defined }}{{ messages[0].get('name', 'x') }}",
        "{{ missing }}{{ missing | default('d') }}{% if add_generation_prompt %}go{% endif %}",
        "{{ (messages | last).content }}{{ messages[-1].role | capitalize }}{{ [3, 1] | sort }}",
        "  {% if true %}\n  line\n  {% endif %}\nend\n",
        "{{ messages[0].reasoning_content }}{{ messages[0].thinking }}",
    ],
)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_template_renders_as_in_transformers(template, tools):
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    messages = [{**MESSAGES[0], "thinking": "hm"}, MESSAGES[1]]
    (expected,), _ = render_jinja_template(
        [messages], tools, None, template, add_generation_prompt=True, **names
    )

    assert ChatTemplate(template, "t", names).render(messages, tools=tools) == expected


def test_empty_fields_are_absent_as_in_transformers():
    message = {"role": "assistant", "content": None, "tool_calls": None}

    assert render("{{ messages[0] | tojson }}", [message]) == '{"role": "assistant"}'


def test_time_is_that_of_the_clock():
    assert render("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)


def test_names_of_special_tokens_are_set_by_the_template():
    names = {"bos_token": '<"s>', "eos_token": "🙂</s>", "messages": "x", "tools": "y"}
    source = "{{ bos_token }}{{ eos_token }}{{ messages }}{{ tools }}"
    template = with_token_names(source, names, "t").decode()

    assert render(template, []) == '<"s>🙂</s>[]None'
    assert ChatTemplate(template, "t").writes_bos


def test_special_tokens_with_names_of_jinja_are_not_set():
    names = ["true", "none", "True", "in", "not", "range", "namespace", "raise_exception", "loop"]
    source = (
        "{% for i in range(2) %}{{ i if i is not none and true }}{{ loop.last }}{% endfor %}"
        "{% set n = namespace(x=a_token) %}{{ n.x }}"
    )
    tokens = {**dict.fromkeys([*names, "a b", "é"], "<x>"), "a_token": "<a>"}

    template = with_token_names(source, tokens, "t").decode()

    assert template == '{% set a_token = "<a>" %}\n' + source
    assert render(template) == "0False1True<a>"


def test_names_that_are_not_in_a_template_do_not_lengthen_it():
    names = {f"tok_{i}_token": "<|x|>" for i in range(4000)}

    assert with_token_names("{{ tok_7_token }}", names, "t").count(b"set ") == 1


@pytest.mark.parametrize(
    "source", ["\nx", "  {% if true %}x{% endif %}", "\n {% if 1 %}x{% endif %}"]
)
def test_names_of_special_tokens_keep_the_blanks_at_the_start_of_a_template(source):
    template = with_token_names(source, {"bos_token": "<s>"}, "t").decode()

    assert render(template) == render(source)


@pytest.mark.parametrize(
    ("source", "names", "message"),
    [
        ("{% if %}", {}, "^t: is not a Jinja template"),
        ("x" * (1 << 17), {"bos_token": "<a>"}, "^t: .* at most 131,072 bytes but have 131,100;"),
        ("a\0b\0", {}, "^t: must be UTF-8 but is UTF-16"),
    ],
)
def test_a_template_with_names_is_refused_where_it_could_not_be_read(source, names, message):
    with pytest.raises(ConfigError, match=message):
        with_token_names(source, names, "t")


@pytest.mark.parametrize(
    ("template", "writes"),
    [
        ("{{ bos_token }}{{ messages }}", True),
        ("{{ messages }}", False),
        ('{% set bos_token = "" %}{{ bos_token }}', False),  # as imported by version 0.1
    ],
)
def test_a_template_with_a_bos_token_decides_about_it(template, writes):
    assert ChatTemplate(template, "t").writes_bos == writes


@pytest.mark.parametrize(
    "template",
    [
        "{% break %}",
        "{{ " + "(" * 400 + "1" + ")" * 400 + " }}",
        "{% if 1 %}" * 300 + "{% endif %}" * 300,
        "{% for i in x %}" * 30 + "{% endfor %}" * 30,
        "{{ 1 | nofilter }}",
        "{% generation %}",
        "{% include 'x' %}{{",
        "{{ 1 }",
    ],
)
def test_an_invalid_template_is_rejected_in_one_line(template):
    with pytest.raises(ConfigError, match=r"^t: is not a Jinja template") as raised:
        ChatTemplate(template, "t")

    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('two\nlines') }}",
        "{{ messages|dictsort }}",
        "{{ messages|xmlattr }}",
        "{{ 'a'|truncate(-1) }}",
        "{{ 1 / 0 }}",
        "{{ [1][5] + 1 }}",
        "{{ none + 1 }}",
        "{{ messages[0].content.nothing.more }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'x' %}",
        "{{ ''.__class__.__mro__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ strftime_now(1) }}",
    ],
)
def test_a_failing_template_is_reported_in_one_line(template):
    with pytest.raises(ConfigError, match=r"^t: rejects these messages") as raised:
        render(template)

    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("messages", [["hello"], [None], 5, [[1]], None])
def test_messages_that_are_no_objects_are_rejected_in_one_line(messages):
    with pytest.raises(ConfigError, match=r"^t: rejects these messages"):
        render("{{ messages }}", messages)


def test_objects_of_the_caller_are_replaced_by_plain_data():
    class Dangerous:
        def delete(self):
            raise AssertionError

    message = {"role": "user", "content": Dangerous()}

    assert render("{{ messages[0].content }}{{ messages[0].content.delete }}", [message]) == (
        "<Dangerous>"
    )


def doubling(start: str, double: str) -> str:
    loop = "{% for i in range(99) %}{% set ns.s = DOUBLE %}{% endfor %}".replace("DOUBLE", double)
    return "{% set ns = namespace(s=START) %}".replace("START", start) + loop


HUGE = [
    "{{ 'a' * 10**9 }}",
    "{{ 10**9 * 'a' }}",
    "{{ [0] * 10**9 }}",
    "{{ 2**99999999 }}",
    "{{ 10**(10**10) }}",
    "{{ range(10**9) | list }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}aaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    doubling("'a'", "ns.s ~ ns.s"),
    doubling("'a'", "ns.s + ns.s"),
    doubling("[1]", "ns.s + ns.s"),
    doubling("[1]", "[ns.s, ns.s]") + "{{ ns.s }}",
    doubling("[1]", "[ns.s, ns.s]") + "{{ ns.s | tojson }}",
    doubling("[1]", "[ns.s, ns.s]") + "{{ ns.s | string | length }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ 'a' | center(1000000000) }}",
    "{{ 'a'.ljust(1000000000) }}",
    "{{ '1'.zfill(1000000000) }}",
    "{{ 'a\na' | indent(1000000000) }}",
    "{{ '\t'.expandtabs(1000000000) }}",
    "{{ [1] | batch(1000000000, 'x') | list }}",
    "{{ [1] | slice(1000000000) | list }}",
    "{{ (1).to_bytes(1000000000) }}",
    "{% set b = 'a' * 99999 %}{{ b.replace('a', b) }}",
    "{% set b = 'a' * 99999 %}{{ b | replace('a', b) }}",
    "{% set b = 'a' * 99999 %}{{ ([b] * 99999) | join | length }}",
    "{% set b = 'a' * 99999 %}{{ b.join([b] * 99999) | length }}",
    "{% set b = 'a' * 99999 %}{{ b.join(b) | length }}",
    "{% set b = 'a' * 99999 %}{{ ('{0}' * 99999).format(b) | length }}",
    "{% set b = 'a' * 99999 %}{{ b.translate({97: b}) | length }}",
    "{% set b = [0] * 99999 %}{{ ([b] * 9999) | sum(start=[]) | length }}",
    "{{ lipsum(n=100000) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% set x %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}",
    "{{ messages | tojson(indent=1000000000) }}",
    "{% set b = 'a' * 9999999 %}{% for i in range(999) %}{{ 'b' in b }}{% endfor %}",
    "{% set b = 'a' * 9999999 %}{% for i in range(999) %}{{ b != b }}{% endfor %}",
    "{% set b = 'a' * 9999999 %}{% for i in range(999) %}{{ b.find('b') }}{% endfor %}",
]


@pytest.mark.parametrize("template", HUGE)
def test_a_rendering_has_bounded_memory_and_steps(template):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match=r"^t: rejects these messages"):
        render(template)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19  # KB


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["{{", "}}", "{%", "%}", "for", "if", "x", "(", "|", "'", "1"])))
def test_random_templates_render_or_fail_in_one_line(parts):
    try:
        render(" ".join(parts))
    except ConfigError as error:
        assert "\n" not in str(error)


def test_a_long_conversation_is_within_the_limits():
    messages = [{"role": "user", "content": "word " * 2000}] * 500
    template = (
        "{% set ns = namespace(m=[]) %}{% for m in messages %}"
        "{% set ns.m = ns.m + [m] %}{% endfor %}"
        "{% for m in ns.m %}{{ '<' + m.role + '>' + m.content | trim | replace('<', '< ') + '\n' }}"
        "{% endfor %}"
    )

    assert len(render(template, messages)) > 4_990_000
