"""Chat templates render to the same text and ids as in transformers, for templates that use its whole environment."""

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
# name -> history, question and tools of a chat
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
# a feature and a chat whose text it changes, where transformers asks another question than the user's
CHANGED = {
    ("tojson of everything", "turns"),
    ("JSON in ASCII", "unicode"),
    ("JSON in ASCII", "turns"),
    ("JSON in ASCII", "markup"),
    ("filters, tests and slices", "turns"),
    ("old thoughts are removed, and markup is escaped", "markup"),
}
# where a text that begins or ends with a space is beside `<|start|>`, which takes the spaces beside it in "odd"
BESIDE_START = {("tools and documents are none", "unicode"), ("blocks and spaces are trimmed", "unicode")}
TEXT, ALL = ("question", "unicode", "turns"), tuple(CHATS)
# feature -> a template, and the chats that it can render
TEMPLATES = {
    "bos, and eos after each answer": (
        "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else '<|end|>' }}{% endfor %}<|start|>assistant",
        TEXT,
    ),
    "a token role that is not defined": (
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
    "raise_exception that is not called": (
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
        "{{ m.role.strip().split(' ')[0] | lower | replace('s', '!') | capitalize }}{% endfor %}",
        ("question", "turns"),
    ),
    "old thoughts are removed, and markup is escaped": (
        "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\\n') %}"
        "{% if '<b>' in m.content %}bold{% endif %}{{ text | e }}{% endfor %}",
        (*TEXT, "markup"),
    ),
    "a comment, raw text and a set block": (
        "{# nothing #}{% raw %}{{ not this }}{% endraw %}{% set head %}<|start|>x<|message|>{% endset %}{{ head }}"
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        TEXT,
    ),
}


def chat_of(name, template):
    """The chat `name`, with an effort only if the template uses one: otherwise it is refused here and ignored there."""
    history, question, tools = CHATS[name]
    reasoning = "low" if "reasoning_effort" in str(template) else None
    return chat(question, history=history, tools=tools, reasoning=reasoning)


def transformers_form(name):
    """The messages and tools of the same chat in transformers' format."""
    history, question, tools = CHATS[name]
    messages = []
    for m in [*history, *([{"role": "user", "content": question}] if question else [])]:
        if "recipient" in m:
            call = {"name": m["recipient"].removeprefix("functions."), "arguments": json.loads(m["content"])}
            m = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
        messages.append(m)
    return messages, [{"type": "function", "function": tool} for tool in tools] if tools else None


def by_transformers(hf_tokenizer, name, template=None, **options):
    messages, tools = transformers_form(name)
    return hf_tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=template, add_generation_prompt=True, reasoning_effort="low", **options
    )


@pytest.fixture(scope="module")
def tokenizers(real):
    """(workbench's tokenizer, transformers' tokenizer) for pocket, pocket with odd added tokens, and gpt-oss."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    def extended(tokenizer_json: bytes) -> str:
        from tokenizers import Tokenizer as Rust

        rust = Rust.from_buffer(tokenizer_json)
        rust.add_special_tokens([AddedToken("<|start|>", lstrip=True, rstrip=True), AddedToken("[X]", rstrip=True)])
        rust.add_tokens([AddedToken("What"), AddedToken("It is", single_word=True)])
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
def test_ids_equal_those_of_apply_chat_template(tokenizers, vocabulary, measured):
    tokenizer, hf_tokenizer = tokenizers[vocabulary]
    compared = 0
    for feature, (template, names) in TEMPLATES.items():
        for name in names:
            if (feature, name) in CHANGED:
                with pytest.raises(PromptError, match="template changes"):
                    jinja.render(chat_of(name, template), tokenizer, template)
                continue
            if vocabulary == "odd" and (feature, name) in BESIDE_START:
                with pytest.raises(PromptError, match="takes a part of the text beside it"):
                    jinja.render(chat_of(name, template), tokenizer, template)
                continue
            ids = jinja.render(chat_of(name, template), tokenizer, template)
            expected = by_transformers(hf_tokenizer, name, template, return_dict=False)
            text = by_transformers(hf_tokenizer, name, template, tokenize=False)
            assert ids == expected, (feature, name, tokenizer.decode(ids), text)
            if vocabulary != "odd":  # its added tokens include spaces
                assert tokenizer.decode(ids) == text, (feature, name)
            compared += 1
    assert len(TEMPLATES) >= 15 and compared > 60
    measured(f"{vocabulary}: {len(TEMPLATES)} templates, {compared} chats: all ids equal those of apply_chat_template")


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(POCKET, tmp_path / "model")


def configure(folder, **settings):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def rendered(folder, name="question"):
    """The ids by workbench and by transformers, each loading the folder."""
    from transformers import AutoTokenizer

    template = jinja.read_template(folder)
    assert template is not None
    by_workbench = render(chat_of(name, template), Tokenizer.from_folder(folder), template)
    return list(by_workbench.ids), by_transformers(AutoTokenizer.from_pretrained(folder), name, return_dict=False)


ONE, TWO = (TEMPLATES[name][0] for name in ("bos, and eos after each answer", "calls and results"))


def test_a_template_is_read_from_tokenizer_config(folder):
    (folder / "chat_template.jinja").unlink()
    assert jinja.read_template(folder) is None
    configure(folder, chat_template=ONE)
    ids, expected = rendered(folder)
    assert ids == expected and ids[0] == 418  # <|startoftext|>
    (folder / "chat_template.jinja").write_text(TWO)  # chat_template.jinja has precedence
    ids, expected = rendered(folder)
    assert ids == expected and ids[0] != 418


def test_the_template_tool_use_is_used_for_a_chat_with_tools(folder):
    (folder / "chat_template.jinja").unlink()
    configure(folder, chat_template=[{"name": "default", "template": ONE}, {"name": "tool_use", "template": TWO}])
    for name, first in (("question", 418), ("tools", None)):
        ids, expected = rendered(folder, name)
        assert ids == expected and (ids[0] == 418) == (first == 418)
    configure(folder, chat_template=[{"name": "rag", "template": ONE}])
    with pytest.raises(PromptError, match=r"chat templates 'rag', but none named 'default'"):
        rendered(folder)


def test_additional_chat_templates_are_read_by_name(folder):
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TWO)
    (folder / "chat_template.jinja").write_text(ONE)
    for name in ("question", "tools"):
        ids, expected = rendered(folder, name)
        assert ids == expected
    assert jinja.read_template(folder) == {"default": ONE, "tool_use": TWO}


@pytest.mark.parametrize(
    "value", [3, {"a": "b"}, [{"name": "default"}], [["a", "b"]], [], [{"name": 1, "template": "x"}]]
)
def test_a_chat_template_of_a_wrong_type_is_refused(folder, value):
    (folder / "chat_template.jinja").unlink()
    configure(folder, chat_template=value)
    with pytest.raises(CheckpointError, match="chat_template must be a text, or a list"):
        jinja.read_template(folder)


def test_an_unreadable_template_is_refused(folder):
    for data, words in (
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\xff{{", "not text in UTF-8"),
    ):
        (folder / "chat_template.jinja").write_bytes(data)
        with pytest.raises(CheckpointError, match=words):
            jinja.read_template(folder)


def test_windows_line_ends_are_read_as_newlines(folder):
    (folder / "chat_template.jinja").write_bytes(ONE.replace("{% for", "\r\n{% for").encode())
    ids, expected = rendered(folder)
    assert ids == expected


def test_token_roles_equal_those_of_transformers(folder):
    from transformers import AutoTokenizer

    (folder / "chat_template.jinja").write_text(ONE)
    token = {"content": "<|call|>"} | dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    configure(folder, eos_token=token | {"__type": "AddedToken"}, bos_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": token | {"content": "<|constrain|>"}}))
    assert Tokenizer.from_folder(folder).roles == AutoTokenizer.from_pretrained(folder).special_tokens_map
    ids, expected = rendered(folder, "turns")
    assert ids == expected and 421 in ids and 426 in ids
    configure(folder, bos_token=7)
    (folder / "special_tokens_map.json").unlink()
    with pytest.raises(CheckpointError, match="bos_token must be text, got 7"):
        Tokenizer.from_folder(folder)


def test_text_cannot_contain_a_control_token_of_one_character():
    from tokenizers import Tokenizer as Rust

    rust = Rust.from_file(str(POCKET / "tokenizer.json"))
    rust.add_special_tokens([AddedToken("☐")])
    tokenizer = Tokenizer(rust.to_str().encode())
    ids = jinja.render(chat("a ☐ b"), tokenizer, "☐{% for m in messages %}{{ m.content | tojson(true) }}{% endfor %}")
    assert ids.count(tokenizer.special["☐"]) == 1 and tokenizer.decode(ids) == '☐"a ☐ b"'


def test_text_cannot_contain_a_control_token_without_angle_brackets(tokenizers):
    tokenizer, _ = tokenizers["odd"]
    template = "{% for m in messages %}[X] {{ m.content }}<|end|>{% endfor %}"
    ids = jinja.render(chat("a [X] b <|end|>"), tokenizer, template)
    assert [ids.count(tokenizer.special[name]) for name in ("[X]", "<|end|>")] == [1, 1]
    assert tokenizer.decode(ids) == "[X]a [X] b <|end|><|end|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% set ns = namespace(_x=1) %}", "must not begin with an underscore"),
        ("{{ dict.__class__() }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% generation %}", "endgeneration"),
        ("{{ raise_exception('Conversation roles must alternate') }}", "roles must alternate"),
    ],
)
def test_a_failing_template_raises_a_prompt_error(pocket, template, message):
    with pytest.raises(PromptError, match=message):
        jinja.render(chat("hi"), pocket, template)


def test_strftime_now_without_a_date_is_the_current_time(pocket):
    template = "{{ strftime_now('%Y-%m') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert pocket.decode(jinja.render(chat("hi"), pocket, template)) == f"{datetime.now():%Y-%m}hi"
