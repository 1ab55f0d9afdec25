"""Templates of strangers run in a process of their own: with limits, from threads, after a fork, after Ctrl-C."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from workbench.conversation import template_process
from workbench.conversation.jinja_environment import rendered
from workbench.conversation.template_process import TemplateProcess
from workbench.errors import PromptError

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def strangers(monkeypatch):
    monkeypatch.setattr(template_process, "SECONDS", 1)
    monkeypatch.setattr(template_process, "MAX_OUTPUT", 1000)
    process = TemplateProcess()
    yield process
    process.close()


def test_it_renders_as_this_process_does(strangers):
    template = "{{ a | tojson(true) }}{{ strftime_now('%Y') }}"
    inputs = [{"a": "é<|\ud83d", "date": "today"}, {"a": [1]}]
    assert strangers.rendered(template, inputs) == rendered(template, inputs)
    assert strangers.rendered("{{ a | tojson(true) }}", [{"a": "é€"}], "€") == ['"\\u00e9€"']


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (ENDLESS, "not rendered this chat after 1 s"),
        ("{{ 'a' * 10**10 }}", "needs more memory"),
        ("{{ 'a' * 5000 }}", "writes more text"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ raise_exception('\x1b[31mno') }}", "␛\\[31mno"),
    ],
)
def test_a_limit_is_a_prompt_error_and_the_next_template_is_rendered(strangers, template, message):
    with pytest.raises(PromptError, match=message):
        strangers.rendered(template, [{}])
    assert strangers.rendered("{{ 1 }}", [{}]) == ["1"]


def test_threads_take_turns(strangers):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: strangers.rendered("{{ n }}", [{"n": n}]), range(50)))
    assert answers == [[str(n)] for n in range(50)]


def test_a_process_that_was_killed_is_started_again(strangers):
    assert strangers.rendered("{{ 1 }}", [{}]) == ["1"]
    strangers._process.kill()
    strangers._process.wait()
    assert strangers.rendered("{{ 2 }}", [{}]) == ["2"]


def test_after_ctrl_c_the_next_chat_gets_its_own_answer(strangers, monkeypatch):
    monkeypatch.setattr(template_process, "SECONDS", 20)
    assert strangers.rendered("{{ 1 }}", [{}]) == ["1"]
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        strangers.rendered(ENDLESS, [{}])
    assert strangers.rendered("{{ 2 }}", [{}]) == ["2"]


def test_a_forked_process_has_a_process_of_its_own():
    parents = template_process.strangers
    assert parents.rendered("{{ 1 }}", [{}]) == ["1"]
    child = os.fork()
    if child == 0:
        childs = template_process.strangers
        right = childs is not parents and childs.rendered("{{ 2 }}", [{}]) == ["2"]
        childs.close()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert parents.rendered("{{ 3 }}", [{}]) == ["3"]


def test_nothing_of_workbench_and_of_the_current_folder_is_imported(strangers, tmp_path, monkeypatch):
    (tmp_path / "jinja2.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert strangers.rendered("{{ 1 }}", [{}]) == ["1"]
