import hashlib
import os
import sys

import pytest

from tests import o200k as published
from workbench.conversation import o200k
from workbench.conversation.bpe_bytes import symbol_bytes
from workbench.conversation.tokenizer import Tokenizer


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """The path of an empty cache folder, with no encoding loaded."""
    o200k._load.cache_clear()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    o200k._load.cache_clear()


def test_the_ranks_equal_openais_byte_for_byte(real):
    data = o200k.ranks(real.symbols)
    assert hashlib.sha256(data).hexdigest() == o200k.RANKS_SHA256
    assert data == published.ranks()
    assert o200k.is_o200k_base(real.symbols)


def test_another_vocabulary_is_not_o200k(real, pocket):
    assert not o200k.is_o200k_base(pocket.symbols)
    changed = real.symbols
    changed["new"] = changed.pop(next(iter(changed)))
    assert not o200k.is_o200k_base(changed)
    assert o200k.harmony_encoding(pocket) is None


def test_loading_writes_the_cache_and_restores_the_environment(real, fresh, monkeypatch):
    monkeypatch.delenv("TIKTOKEN_ENCODINGS_BASE", raising=False)
    assert o200k.harmony_encoding(real) is not None
    assert "TIKTOKEN_ENCODINGS_BASE" not in os.environ
    assert [p.name for p in fresh.iterdir()] == ["o200k_base.tiktoken"], "no temporary file is left"
    monkeypatch.setenv("TIKTOKEN_ENCODINGS_BASE", "/somewhere")
    o200k._load.cache_clear()
    assert o200k.harmony_encoding(real) is not None
    assert os.environ["TIKTOKEN_ENCODINGS_BASE"] == "/somewhere"


def test_a_damaged_cache_is_rebuilt(real, fresh):
    fresh.mkdir()
    (fresh / "o200k_base.tiktoken").write_bytes(b"IQ== 0\n")
    assert o200k.harmony_encoding(real) is not None
    assert hashlib.sha256((fresh / "o200k_base.tiktoken").read_bytes()).hexdigest() == o200k.RANKS_SHA256


def test_the_encoding_is_loaded_without_a_writable_cache(real, fresh):
    fresh.parent.mkdir(exist_ok=True)
    fresh.write_text("a file at the path of the folder")
    assert o200k.harmony_encoding(real) is not None


def test_without_openai_harmony_there_is_no_encoding(real, fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai_harmony", None)
    assert o200k.harmony_encoding(real) is None


def test_the_cache_folder_can_be_chosen(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    assert o200k.cache_folder() == tmp_path
    monkeypatch.delenv("WORKBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert o200k.cache_folder() == tmp_path / "gpt-oss-workbench"


def test_every_byte_has_a_symbol(pocket: Tokenizer):
    assert {symbol_bytes(s) for s in pocket.symbols if len(s) == 1} == {bytes([b]) for b in range(256)}
