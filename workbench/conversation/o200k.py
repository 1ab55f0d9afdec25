"""openai-harmony's vocabulary, rebuilt from a checkpoint's own tokenizer. Never downloads anything."""

import base64
import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.conversation.bpe_bytes import symbol_bytes
from workbench.conversation.tokenizer import Tokenizer
from workbench.files import atomic_write
from workbench.paths import expanded

if TYPE_CHECKING:
    from openai_harmony import HarmonyEncoding

GPT_OSS_DIGEST = "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"  # as published, both sizes
RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"  # harmony checks the same
N_RANKS = 199_998
FILE = "o200k_base.tiktoken"
_lock = threading.Lock()  # environment variables belong to the whole process


def harmony_encoding(tokenizer: Tokenizer) -> "HarmonyEncoding | None":
    """harmony's encoding for gpt-oss; None for another tokenizer, or if openai-harmony is not installed.

    The first call writes `o200k_base.tiktoken` (3.6 MB) to `cache_folder()`. If that folder is not writable, a
    temporary folder is used while the encoding is loaded.
    """
    if not is_o200k(tokenizer):
        return None
    with _lock:
        return _load(tokenizer)


def cache_folder() -> Path:
    """The folder of cached files: $WORKBENCH_CACHE, else $XDG_CACHE_HOME/gpt-oss-workbench, else ~/.cache/…"""
    if folder := os.environ.get("WORKBENCH_CACHE"):
        return expanded(folder)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gpt-oss-workbench"


def ranks(symbols: Mapping[str, int]) -> bytes:
    """The content of a `.tiktoken` file: for each token a line with the base64 of its bytes and its rank (its id).

    >>> ranks({"!": 0, "Ġa": 1})
    b'IQ== 0\\nIGE= 1\\n'
    """
    ordered = sorted(symbols.items(), key=lambda item: item[1])
    return b"".join(base64.b64encode(symbol_bytes(symbol)) + b" %d\n" % rank for symbol, rank in ordered)


@lru_cache(maxsize=8)  # called for every prompt, and hashes the whole vocabulary
def is_o200k(tokenizer: Tokenizer) -> bool:
    """Whether the vocabulary is o200k_harmony, gpt-oss's own, id for id.

    >>> is_o200k(Tokenizer.from_folder("data/pocket"))
    False
    """
    if tokenizer.digest == GPT_OSS_DIGEST:
        return True
    # the same vocabulary in another tokenizer.json
    return tokenizer.special.get("<|start|>") == 200006 and is_o200k_base(tokenizer.symbols)


def is_o200k_base(symbols: Mapping[str, int]) -> bool:
    """Whether the vocabulary is OpenAI's o200k_base, byte for byte."""
    return len(symbols) == N_RANKS and hashlib.sha256(ranks(symbols)).hexdigest() == RANKS_SHA256


@cache
def _load(tokenizer: Tokenizer) -> "HarmonyEncoding | None":
    try:
        from openai_harmony import HarmonyEncodingName, load_harmony_encoding
    except ImportError:
        return None
    with _vocabulary_folder(tokenizer) as folder, _environment("TIKTOKEN_ENCODINGS_BASE", str(folder)):
        return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


@contextmanager
def _vocabulary_folder(tokenizer: Tokenizer) -> Iterator[Path]:
    """A folder that contains the correct `o200k_base.tiktoken` while the block runs."""
    cached = cache_folder()
    if _is_correct(cached / FILE):
        yield cached
        return
    data = ranks(tokenizer.symbols)
    try:
        cached.mkdir(parents=True, exist_ok=True)
        atomic_write(cached / FILE, data)
    except OSError:  # a read-only home folder: load without the cache
        with tempfile.TemporaryDirectory() as scratch:
            yield atomic_write(Path(scratch) / FILE, data).parent
        return
    yield cached


def _is_correct(path: Path) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == RANKS_SHA256
    except OSError:
        return False


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
