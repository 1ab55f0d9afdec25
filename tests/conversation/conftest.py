"""Fixtures: the tokenizers of gpt-oss (rebuilt offline) and pocket, pocket's template, harmony's encoding."""

from pathlib import Path

import pytest

from tests import o200k
from workbench.conversation.o200k import harmony_encoding
from workbench.conversation.tokenizer import Tokenizer

POCKET = Path(__file__).parents[2] / "data" / "pocket"


@pytest.fixture(scope="session")
def real() -> Tokenizer:
    return Tokenizer.from_folder(o200k.folder())


@pytest.fixture(scope="session")
def pocket() -> Tokenizer:
    return Tokenizer.from_folder(POCKET)


@pytest.fixture(scope="session")
def template() -> str:
    return (POCKET / "chat_template.jinja").read_text()


@pytest.fixture(scope="session")
def harmony(real):
    """openai-harmony's encoding, from the rebuilt vocabulary."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(o200k.folder().parent / "cache"))
        encoding = harmony_encoding(real)
    assert encoding is not None
    return encoding
