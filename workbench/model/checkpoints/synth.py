"""Writes checkpoints of the published shapes with random weights, for benchmarks and bug reports without the real ones.

The layout is that of huggingface.co/openai/gpt-oss-20b and -120b: names, shapes, dtypes, shard names, config. Only the
assignment of tensors to shards differs: each shard has whole layers. The weights are meaningless, but activations stay
finite and the router's choices depend on the token.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from zlib import crc32

import ml_dtypes
import numpy as np

from workbench.checks import check_seed, check_whole
from workbench.errors import ArgumentTypeError, BudgetError, CheckpointError, ModelNotFound
from workbench.files import atomic_folder
from workbench.model.checkpoints.hf import BLOCK, EXPERTS, TOP
from workbench.model.checkpoints.hf_config import hf_config_json
from workbench.model.checkpoints.validate import block_shapes, check_config, packed_shapes, top_shapes
from workbench.model.config import Config
from workbench.paths import absolute, expanded
from workbench.progress import Bar, progress_bar
from workbench.text import shown, size_text
from workbench.untrusted import is_file

SHAPES = {"20b": Config(), "120b": Config(n_layers=36, n_experts=128, layer_types=Config().layer_types[:2] * 18)}
SHARDS = {"20b": 3, "120b": 15}  # file names count from 0, and "of" is one less than the number of shards
STD = 0.02  # standard deviation of dense weights and biases
SCALES = (117, 123)  # scale bytes: 2^-10 to 2^-5
CHUNK_NUMBERS = 1 << 24  # numbers generated at once; a multiple of 8
SPARE = 1 << 28  # bytes of disk space that stay free
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to write."""

    name: str
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    kind: str  # distribution of its numbers: "ones", "normal", "sinks", "codes", "scales"

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * (2 if self.dtype == "BF16" else 1)


def synth(
    like: str | Config,
    folder: str | os.PathLike[str],
    *,
    layers: int | None = None,
    seed: int = 0,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Path:
    """The folder of a new checkpoint with random weights in the published layout.

    It loads, runs and is recorded like the published model, and at the same speed. The same seed gives the same bytes.
    A tensor depends only on the seed, its name and its shape, so a model of 6 layers equals the first 6 of 24 layers.
    The folder is written completely or not at all, also when interrupted or when an error is raised.

    Args:
        like: "20b" (13.8 GB), "120b" (65 GB), or a Config of your own.
        folder: where to write; it must not exist, or be empty.
        layers: the number of layers to write, from the first. None: all of them.
        seed: the seed of the random numbers.
        tokenizer: a folder whose tokenizer.json and chat template are copied. None: the model takes token ids only.

    Raises:
        ModelNotFound: `like` is not a published model, or `tokenizer` has no tokenizer.json.
        CheckpointError: the folder is not empty, or the shape is impossible for gpt-oss.
        BudgetError: the disk does not have enough space.

    >>> wb.synth("20b", "models/random-20b", layers=2).name  # doctest: +SKIP
    'random-20b'
    >>> wb.synth("7b", "models/random-7b")
    Traceback (most recent call last):
    workbench.errors.ModelNotFound: there is no published gpt-oss '7b'; there are '20b' and '120b'.
    """
    seed, target = check_seed(seed), absolute(folder, "folder")
    c, shards = _config(like, None if layers is None else check_whole("layers", layers))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} already exists and is not empty. Give another folder; nothing was written.")
    copied = _tokenizer(tokenizer)
    files = _shards(c, shards)
    need = sum(entry.nbytes for entries in files.values() for entry in entries)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if need + SPARE > free:
        raise BudgetError(
            f"the checkpoint takes {size_text(need)}, but {target.parent} has only {size_text(free)} free. Give a "
            f"folder on another disk, or fewer layers: each takes {size_text(_layer_bytes(c))}."
        )
    with atomic_folder(target) as staging:
        with progress_bar(total=need, unit="B", unit_scale=True, desc=target.name) as bar:
            for name, entries in files.items():
                _write(staging / name, entries, seed, bar)
        _describe(staging, c, files)
        for path in copied:
            shutil.copyfile(path, staging / path.name)
    return target


def _config(like: str | Config, layers: int | None) -> tuple[Config, int]:
    if not isinstance(like, str | Config):
        raise ArgumentTypeError(f"like must be '20b', '120b' or a Config, got {shown(like)}.")
    if isinstance(like, str) and like not in SHAPES:
        raise ModelNotFound(
            f"there is no published gpt-oss {shown(like)}; there are {' and '.join(map(repr, SHAPES))}."
        )
    c = SHAPES[like] if isinstance(like, str) else like
    shards = min(SHARDS[like], c.n_layers) if isinstance(like, str) else min(3, c.n_layers)
    if layers is not None:
        if not 1 <= layers <= c.n_layers:
            raise CheckpointError(f"layers must be 1 to {c.n_layers}, got {layers}.")
        shards = max(1, round(shards * layers / c.n_layers))
        c = replace(c, n_layers=layers, layer_types=c.layer_types[:layers])
    return check_config(c, "a synthetic checkpoint", {}), shards


def _tokenizer(folder: str | os.PathLike[str] | None) -> list[Path]:
    if folder is None:
        return []
    source = expanded(folder)
    if not is_file(source / TOKENIZER[0]):
        raise ModelNotFound(f"{folder} has no {TOKENIZER[0]}. Give the folder of a model that has one, or None.")
    return [source / name for name in TOKENIZER if is_file(source / name)]


def _entries(c: Config) -> Iterator[tuple[int, Entry]]:
    """Every tensor, after the layer that determines its shard."""
    top = top_shapes(c)
    yield 0, Entry(TOP["embed"], "BF16", top["embed"], "normal")
    for layer in range(c.n_layers):
        at = f"model.layers.{layer}."
        for field, shape in block_shapes(c).items():
            if field in ("up", "down"):
                blocks, scales = packed_shapes(shape, "a synthetic checkpoint")
                yield layer, Entry(at + EXPERTS[field] + "_blocks", "U8", blocks, "codes")
                yield layer, Entry(at + EXPERTS[field] + "_scales", "U8", scales, "scales")
            else:
                kind = {"ln1": "ones", "ln2": "ones", "sinks": "sinks"}.get(field, "normal")
                yield layer, Entry(at + (BLOCK | EXPERTS)[field], "BF16", shape, kind)
    yield c.n_layers - 1, Entry(TOP["ln_final"], "BF16", top["ln_final"], "ones")
    yield c.n_layers - 1, Entry(TOP["unembed"], "BF16", top["unembed"], "normal")


def _shards(c: Config, n: int) -> dict[str, list[Entry]]:
    files: dict[str, list[Entry]] = {f"model-{i:05d}-of-{n - 1:05d}.safetensors": [] for i in range(n)}
    names = list(files)
    for layer, entry in _entries(c):
        files[names[layer * n // c.n_layers]].append(entry)
    return files


def _layer_bytes(c: Config) -> int:
    return sum(entry.nbytes for layer, entry in _entries(c) if layer == 0 and ".layers.0." in entry.name)


def _write(path: Path, entries: list[Entry], seed: int, bar: Bar) -> None:
    """Writes one shard: the header of safetensors, then the numbers of each tensor.

    The tensors are in the order of safetensors itself, wider dtypes first and then by name, so every tensor is aligned.
    """
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    start = 0
    entries = sorted(entries, key=lambda entry: (entry.dtype != "BF16", entry.name))
    for entry in entries:
        offsets = [start, start + entry.nbytes]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        start += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            rng = np.random.Generator(np.random.SFC64([seed, crc32(entry.name.encode())]))
            remaining = prod(entry.shape)
            while remaining:
                n = min(remaining, CHUNK_NUMBERS)
                file.write(_numbers(entry.kind, n, rng).data)
                remaining -= n
            bar.update(entry.nbytes)


def _numbers(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """The next `n` numbers of a tensor, as bytes."""
    if kind == "codes":
        return rng.integers(0, 1 << 64, -(-n // 8), dtype="<u8").view(np.uint8)[:n]  # 7 times as fast as rng.bytes(n)
    if kind == "scales":
        return rng.integers(*SCALES, n, dtype=np.uint8)
    if kind == "ones":
        x = np.ones(n, np.float32)
    else:
        x = rng.standard_normal(n, dtype=np.float32)
        x *= 1.0 if kind == "sinks" else STD
    return x.astype(ml_dtypes.bfloat16).view(np.uint8)


def _describe(folder: Path, c: Config, files: dict[str, list[Entry]]) -> None:
    """Writes the index, config.json and generation_config.json, as published."""
    total = sum(entry.nbytes for entries in files.values() for entry in entries)
    weight_map = {entry.name: name for name, entries in files.items() for entry in entries}
    eos = [200002, 199999, 200012] if c.d_vocab > 200012 else [c.d_vocab - 1]
    pad = 199999 if c.d_vocab > 199999 else None
    config = hf_config_json(c, packed=True) | {
        "eos_token_id": eos[0],
        "experts_per_token": c.n_active,
        "initial_context_length": c.rope_original,
        "pad_token_id": pad,
        "transformers_version": "4.55.0.dev0",
    }
    generation = {
        "bos_token_id": 199998,
        "do_sample": True,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("model.safetensors.index.json", index),
    ):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
