"""The real gpt-oss tokenizer, rebuilt without a network from quicktok-v1's ranks. Hash-checked; for tests."""

import base64
import hashlib
import os
import struct
import tempfile
from pathlib import Path

RANKS_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
TOKENIZER_SHA256 = "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"
NAMED = {
    199998: "<|startoftext|>",
    199999: "<|endoftext|>",
    200002: "<|return|>",
    200003: "<|constrain|>",
    200005: "<|channel|>",
    200006: "<|start|>",
    200007: "<|end|>",
    200008: "<|message|>",
    200012: "<|call|>",
    200018: "<|endofprompt|>",
}
SPLIT = [  # alternatives, in this order
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
]


def folder() -> Path:
    """A folder with gpt-oss's own `tokenizer.json`, byte for byte; built once (5 s), then cached."""
    cache = Path(
        os.environ.get("WORKBENCH_TEST_CACHE") or Path(tempfile.gettempdir()) / f"workbench-tests-{os.getuid()}"
    )
    place = cache / f"o200k-{TOKENIZER_SHA256[:12]}"
    if _digest(place / "tokenizer.json") == TOKENIZER_SHA256:
        return place
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:  # same file system: the rename below is atomic
        built = Path(scratch)
        (built / "ranks").write_bytes(ranks())
        _tokenizer(built / "ranks").save(str(built / "tokenizer.json"))
        digest = _digest(built / "tokenizer.json")
        assert digest == TOKENIZER_SHA256, f"the rebuilt tokenizer.json has sha256 {digest}, not {TOKENIZER_SHA256}"
        place.mkdir(exist_ok=True)
        (built / "tokenizer.json").replace(place / "tokenizer.json")
    return place


def ranks() -> bytes:
    """The bytes of `o200k_base.tiktoken`, from quicktok's table: u32 count, then u16 length, token, u32 rank."""
    import quicktok

    raw = (Path(quicktok.__file__).parent / "data" / "o200k.vocab").read_bytes()
    (count,) = struct.unpack_from("<I", raw)
    offset, rows = 4, []
    for _ in range(count):
        (length,) = struct.unpack_from("<H", raw, offset)
        token = raw[offset + 2 : offset + 2 + length]
        (rank,) = struct.unpack_from("<I", raw, offset + 2 + length)
        rows.append((rank, token))
        offset += 6 + length
    data = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in sorted(rows))
    assert hashlib.sha256(data).hexdigest() == RANKS_SHA256, "quicktok's o200k.vocab is not o200k_base"
    return data


def _tokenizer(ranks_file: Path):
    from transformers.convert_slow_tokenizer import TikTokenConverter

    special = [NAMED.get(i, f"<|reserved_{i}|>") for i in range(199998, 200019)]
    return TikTokenConverter(
        vocab_file=str(ranks_file), pattern="|".join(SPLIT), extra_special_tokens=special
    ).converted()


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
