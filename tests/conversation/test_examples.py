import doctest
from importlib import import_module

import pytest

from tests.conversation.conftest import POCKET

MODULES = ["conversation.tokenizer", "conversation.vocabulary", "conversation.parse", "conversation.chat", "segments"]


@pytest.mark.parametrize("name", MODULES)
def test_every_example_gives_the_result_beside_it(name, monkeypatch):
    monkeypatch.chdir(POCKET.parents[1])
    result = doctest.testmod(import_module(f"workbench.{name}"))
    assert result.attempted > 0 and result.failed == 0
