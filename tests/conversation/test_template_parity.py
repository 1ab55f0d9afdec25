"""Chat templates in the environment that transformers gives them: equal text and equal ids, template by template."""

import json
import shutil
from datetime import datetime

import pytest
from tokenizers import AddedToken

from tests import o200k
from tests.conversation.conftest import POCKET
from workbench.conversation import template as jinja
from workbench.conversation.chat import chat
from workbench.conversation.render import render
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import CheckpointError, PromptError

SCHEMA = {"type": "object", "properties": {"n": {"type": "number", "description": 'größer als "0" & <5'}}}
TOOLS = [
    {"name": "calc", "description": "Rechnet.\nGenau.", "parameters": SCHEMA},
    {"name": "clock", "description": "", "parameters": {"type": "object", "properties": {}}},
]
CALL = {"role": "assistant", "recipient": "functions.calc", "content": '{"n": 3, "k": [1, "é"]}'}
# by name: the history, the question and the tools of a chat
CHATS = {
    "question": ([], "What is 7+8?", None),
    "unicode": ([], " Größe 日本 👩‍👧?\n", None),
    "turns": ([{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "It is 2.\n"}], "And 3+4?", None),
    "thoughts": (
        [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "It is 2.", "thinking": "1+1 is 2."}],
        "And 3+4?",
        None,
    ),
    "markup": ([], "<think>Hm.</think>\n<b>7 > 5 & 'a' | \"b\"</b>", None),
    "tools": ([], "What is 7+8?", TOOLS),
    "call": ([{"role": "user", "content": "Hi."}, CALL, {"role": "tool", "name": "calc", "content": "3"}], None, TOOLS),
}
TEXT, ALL = ("question", "unicode", "turns"), tuple(CHATS)
# by feature: a template, and the chats that it has a place for
TEMPLATES = {
    "bos, and eos after each answer": (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else '<|end|>' }}{% endfor %}<|start|>assistant",
        TEXT,
    ),
    "a role that is not there": (
        "{{ unk_token }}{{ pad_token }}{% if sep_token is defined %}!{% endif %}"
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}",
        TEXT,
    ),
    "tools and documents are none": (
        "{% if tools is not none %}{{ tools | tojson }}{% endif %}{% if documents is not none %}D{% endif %}"
        "{% if tools is defined and documents is defined %}<|start|>{% endif %}"
        "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}",
        (*TEXT, "tools"),
    ),
    "generation": (
        "{% for m in messages %}<|start|>{{ m.role }}<|message|>{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|end|>{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}"
        "{% endfor %}<|start|>assistant",
        TEXT,
    ),
    "generation with dashes and a scope": (
        "{% set n = 1 %}{%- for m in messages -%}\n  {%- generation -%}  {% set n = 5 %}{{ m.content }}{{ n }}\n"
        "  {%- endgeneration -%}\n {{ n }}{%- endfor -%}",
        TEXT,
    ),
    "raise_exception that is not reached": (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no ' + m.role) }}"
        "{% endif %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endfor %}",
        TEXT,
    ),
    "strftime_now": (
        "{{ strftime_now('%Y') }} {{ strftime_now('%d %b') }}{% for m in messages %}{{ m.content }}{% endfor %}",
        TEXT,
    ),
    "tojson of everything": (
        "{% for m in messages %}{{ m | tojson }}\n{% endfor %}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}",
        ("question", "turns", "thoughts", "tools", "call"),
    ),
    "tojson with its options": (
        "{% for t in tools or [] %}{{ t | tojson(indent=4, sort_keys=true) }}{{ t.function.parameters | "
        "tojson(ensure_ascii=true, separators=(',', ':')) }}{% endfor %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        ("question", "unicode", "turns", "tools"),
    ),
    "JSON in ASCII": ("{% for m in messages %}{{ m.content | tojson(true) }}{% endfor %}", (*TEXT, "markup")),
    "break and continue": (
        "{% for m in messages %}{% if loop.index0 > 9 %}{% break %}{% endif %}{% if m.role == 'tool' %}{% continue %}"
        "{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}",
        TEXT,
    ),
    "namespace": (
        "{% set ns = namespace(n=0, last='') %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.n = ns.n + 1 %}{% endif %}{% set ns.last = m.role %}{{ ns.n }}{{ m.content }}"
        "{% endfor %}{{ ns.last }}",
        TEXT,
    ),
    "dict of the environment": (
        "{% set names = dict(user='U', assistant='A', tool='T') %}{% set seen = dict.fromkeys(['a', 'b'], 1) %}"
        "{% for m in messages %}{{ names[m.role] }}{{ m.content }}{% endfor %}{{ seen.b }}",
        TEXT,
    ),
    "blocks and spaces are trimmed": (
        "\n  {% for m in messages %}\n    {% if m.role == 'user' %}\nQ: {{ m.content }}\n    {% else %}\n\tA: "
        "{{ m.content }}\n    {% endif %}\n  {% endfor %}\n  <|start|>assistant \n",
        TEXT,
    ),
    "a macro with a default": (
        "{%- macro turn(role, text, end='<|end|>') -%}<|start|>{{ role }}<|message|>{{ text }}{{ end }}{%- endmacro -%}"
        "{%- for m in messages %}{{ turn(m.role, m.content) }}{% endfor %}{{ turn('assistant', '', end='') }}",
        TEXT,
    ),
    "a macro that calls itself": (
        "{% macro kind(s) %}{% if s.properties %}{ {%- for k, v in s.properties.items() %}{{ k }}: {{ kind(v) }}"
        "{% endfor %} }{% else %}{{ s.type }}{% endif %}{% endmacro %}"
        "{% for t in tools or [] %}{{ t.function.name }}({{ kind(t.function.parameters) }})\n{% endfor %}"
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        ("question", "tools"),
    ),
    "a call block": (
        "{% macro around(x) %}<|start|>{{ x }}<|message|>{{ caller() }}<|end|>{% endmacro %}"
        "{% for m in messages %}{% call around(m.role) %}{{ m.content }}{% endcall %}{% endfor %}",
        TEXT,
    ),
    "thoughts under either name": (
        "{% for m in messages %}{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
        "{% if m.reasoning_content is defined %}({{ m.reasoning_content }}){% endif %}{{ m.content }}{% endfor %}",
        (*TEXT, "thoughts"),
    ),
    "calls and results": (
        "{% for t in tools or [] %}{{ t.type }} {{ t.function.name }}: {{ t.function.description }}\n{% endfor %}"
        "{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}<|start|>assistant to="
        "{{ c.function.name }}<|message|>{{ c.function.arguments | tojson }}<|call|>{% endfor %}"
        "{% elif m.role == 'tool' %}<|start|>{{ m.name }}<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}<|start|>assistant",
        ALL,
    ),
    "add_generation_prompt and the effort": (
        "{% if reasoning_effort is defined %}Reasoning: {{ reasoning_effort }}{% endif %}{% for m in messages %}"
        "{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}",
        TEXT,
    ),
    "filters, tests and slices": (
        "{% if messages[0].role is string and messages | length >= 1 %}"
        "{{ messages | map(attribute='role') | join(',') }}{% endif %}"
        "{% for m in messages[::1] %}{{ loop.first }}{{ loop.last }}{{ m.content | indent(2) | safe }}"
        "{{ m.content.strip().split(' ')[0] | lower | replace('?', '!') | capitalize }}{% endfor %}",
        ("question", "turns"),
    ),
    "old thoughts are cut off, and markup is escaped": (
        "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\\n') %}"
        "{% if '<b>' in m.content %}bold{% endif %}{{ text }}{{ m.content | e }}{% endfor %}",
        (*TEXT, "markup"),
    ),
    "a comment, raw text and a set block": (
        "{# nothing #}{% raw %}{{ not this }}{% endraw %}{% set head %}<|start|>x<|message|>{% endset %}{{ head }}"
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        TEXT,
    ),
}


def asked(name, template):
    """An effort only where the template has a place for one: elsewhere it is refused, and transformers ignores it."""
    history, question, tools = CHATS[name]
    reasoning = "low" if "reasoning_effort" in str(template) else None
    return chat(question, history=history, tools=tools, reasoning=reasoning)


def transformers_form(name):
    """The same chat as a user of transformers writes it."""
    history, question, tools = CHATS[name]
    messages = []
    for m in [*history, *([{"role": "user", "content": question}] if question else [])]:
        if "recipient" in m:
            call = {"name": m["recipient"].removeprefix("functions."), "arguments": json.loads(m["content"])}
            m = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
        messages.append(m)
    return messages, [{"type": "function", "function": tool} for tool in tools] if tools else None


def by_transformers(theirs, name, template=None, **options):
    messages, tools = transformers_form(name)
    return theirs.apply_chat_template(
        messages, tools=tools, chat_template=template, add_generation_prompt=True, reasoning_effort="low", **options
    )


@pytest.fixture(scope="module")
def both(real):
    """Our tokenizer and transformers' for: pocket, pocket with odd added tokens, gpt-oss's own vocabulary."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    def extended(tokenizer_json: bytes) -> str:
        from tokenizers import Tokenizer as Rust

        rust = Rust.from_buffer(tokenizer_json)
        rust.add_special_tokens([AddedToken("<|start|>", lstrip=True, rstrip=True), AddedToken("[X]", rstrip=True)])
        rust.add_tokens([AddedToken("What", rstrip=True), AddedToken("It is", lstrip=True, single_word=True)])
        return rust.to_str()

    roles = json.loads((POCKET / "tokenizer_config.json").read_text())
    named = {key: roles[key] for key in ("bos_token", "eos_token", "pad_token")}
    o200k_file = str(o200k.folder() / "tokenizer.json")
    odd = extended((POCKET / "tokenizer.json").read_bytes())
    from tokenizers import Tokenizer as Rust

    return {
        "pocket": (Tokenizer.from_folder(POCKET), AutoTokenizer.from_pretrained(POCKET)),
        "odd": (
            Tokenizer(odd.encode(), roles=named),
            PreTrainedTokenizerFast(tokenizer_object=Rust.from_str(odd), **named),
        ),
        "o200k": (
            Tokenizer((o200k.folder() / "tokenizer.json").read_bytes(), roles=named),
            PreTrainedTokenizerFast(tokenizer_file=o200k_file, **named),
        ),
    }


@pytest.mark.parametrize("vocabulary", ["pocket", "odd", "o200k"])
def test_ids_are_those_of_apply_chat_template(both, vocabulary, measured):
    ours, theirs = both[vocabulary]
    compared = 0
    for feature, (template, names) in TEMPLATES.items():
        for name in names:
            got = jinja.render(asked(name, template), ours, template)
            want = by_transformers(theirs, name, template, return_dict=False)
            text = by_transformers(theirs, name, template, tokenize=False)
            assert got == want, (feature, name, ours.decode(got), text)
            if vocabulary != "odd":  # whose tokens take spaces
                assert ours.decode(got) == text, (feature, name)
            compared += 1
    assert len(TEMPLATES) >= 15 and compared > 60
    measured(f"{vocabulary}: {len(TEMPLATES)} templates, {compared} chats: all ids those of apply_chat_template")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(POCKET, tmp_path / "model")


def configured(folder, **settings):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rendered(folder, name="question"):
    """By ours and by transformers, each reading the folder."""
    from transformers import AutoTokenizer

    found = jinja.read_template(folder)
    assert found is not None
    ours = render(asked(name, found), Tokenizer.from_folder(folder), found)
    return list(ours.ids), by_transformers(AutoTokenizer.from_pretrained(folder), name, return_dict=False)


ONE, TWO = (TEMPLATES[name][0] for name in ("bos, and eos after each answer", "calls and results"))


def test_a_template_is_read_from_tokenizer_config(folder):
    (folder / "chat_template.jinja").unlink()
    assert jinja.read_template(folder) is None
    configured(folder, chat_template=ONE)
    got, want = rendered(folder)
    assert got == want and got[0] == 418  # <|startoftext|>
    (folder / "chat_template.jinja").write_text(TWO)  # a file of its own goes first
    got, want = rendered(folder)
    assert got == want and got[0] != 418


def test_of_several_templates_the_one_for_tools_is_taken_where_there_are_tools(folder):
    (folder / "chat_template.jinja").unlink()
    configured(folder, chat_template=[{"name": "default", "template": ONE}, {"name": "tool_use", "template": TWO}])
    for name, first in (("question", 418), ("tools", None)):
        got, want = rendered(folder, name)
        assert got == want and (got[0] == 418) == (first == 418)
    configured(folder, chat_template=[{"name": "rag", "template": ONE}])
    with pytest.raises(PromptError, match=r"chat templates 'rag', and none is named 'default'"):
        rendered(folder)


def test_templates_in_files_of_their_own_are_read_by_name(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TWO)
    (folder / "chat_template.jinja").write_text(ONE)
    for name in ("question", "tools"):
        got, want = rendered(folder, name)
        assert got == want
    assert jinja.read_template(folder) == {"default": ONE, "tool_use": TWO}


@pytest.mark.parametrize(
    "value", [3, {"a": "b"}, [{"name": "default"}], [["a", "b"]], [], [{"name": 1, "template": "x"}]]
)
def test_a_chat_template_of_another_form_is_refused(folder, value):
    (folder / "chat_template.jinja").unlink()
    configured(folder, chat_template=value)
    with pytest.raises(CheckpointError, match="chat_template must be a text, or a list"):
        jinja.read_template(folder)


def test_a_template_that_cannot_be_read_is_named(folder):
    for data, words in ((b"version https://git-lfs.github.com/spec/v1", "git lfs pull"), (b"\xff{{", "cannot be read")):
        (folder / "chat_template.jinja").write_bytes(data)
        with pytest.raises(CheckpointError, match=words):
            jinja.read_template(folder)


def test_line_ends_of_windows_are_those_of_python(folder):
    (folder / "chat_template.jinja").write_bytes(ONE.replace("{% for", "\r\n{% for").encode())
    got, want = rendered(folder)
    assert got == want


def test_the_roles_of_tokens_are_read_as_transformers_reads_them(folder):
    from transformers import AutoTokenizer

    (folder / "chat_template.jinja").write_text(ONE)
    token = {"content": "<|call|>"} | dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    configured(folder, eos_token=token | {"__type": "AddedToken"}, bos_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": token | {"content": "<|constrain|>"}}))
    assert Tokenizer.from_folder(folder).roles == AutoTokenizer.from_pretrained(folder).special_tokens_map
    got, want = rendered(folder, "turns")
    assert got == want and 421 in got and 426 in got
    configured(folder, bos_token=7)
    (folder / "special_tokens_map.json").unlink()
    with pytest.raises(CheckpointError, match="bos_token must be text, it is 7"):
        Tokenizer.from_folder(folder)


def test_a_control_token_of_one_character_cannot_be_said():
    from tokenizers import Tokenizer as Rust

    rust = Rust.from_file(str(POCKET / "tokenizer.json"))
    rust.add_special_tokens([AddedToken("☐")])
    ours = Tokenizer(rust.to_str().encode())
    ids = jinja.render(chat("a ☐ b"), ours, "☐{% for m in messages %}{{ m.content | tojson(true) }}{% endfor %}")
    assert ids.count(ours.special["☐"]) == 1 and ours.decode(ids) == '☐"a ☐ b"'


def test_a_control_token_without_angle_brackets_cannot_be_said(both):
    ours, _ = both["odd"]
    template = "{% for m in messages %}[X] {{ m.content }}<|end|>{% endfor %}"
    ids = jinja.render(chat("a [X] b <|end|>"), ours, template)
    assert [ids.count(ours.special[name]) for name in ("[X]", "<|end|>")] == [1, 1]
    assert ours.decode(ids) == "[X]a [X] b <|end|><|end|>"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% set ns = namespace(_x=1) %}", "may begin with an underscore"),
        ("{{ dict.__class__() }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% generation %}", "endgeneration"),
        ("{{ raise_exception('Conversation roles must alternate') }}", "roles must alternate"),
    ],
)
def test_a_template_that_fails_is_a_prompt_error(pocket, template, says):
    with pytest.raises(PromptError, match=says):
        jinja.render(chat("hi"), pocket, template)


def test_strftime_now_is_the_clock_unless_a_date_is_given(pocket):
    template = "{{ strftime_now('%Y-%m') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert pocket.decode(jinja.render(chat("hi"), pocket, template)) == f"{datetime.now():%Y-%m}hi"
