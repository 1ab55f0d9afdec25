"""What this machine has and which gpt-oss it can run, told without a network and without loading a model."""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import psutil
import torch

from workbench import hooks
from workbench.conversation import o200k
from workbench.errors import WorkbenchError
from workbench.model.checkpoints.bundled import embedded_folder
from workbench.model.checkpoints.folder_files import hf_files, read_json
from workbench.model.checkpoints.hf_config import parse_hf_config
from workbench.model.checkpoints.hub import cache_folder, download_command, snapshot_folder
from workbench.model.checkpoints.validate import DEQUANTIZE_MAX_BYTES, FAST_FRACTION, PACKED_BYTES, default_dtype
from workbench.model.config import Config
from workbench.model.memory import free_memory
from workbench.recording import budget
from workbench.recording.plan import always
from workbench.text import size_text

DISTRIBUTION = "gpt-oss-workbench"
LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "openai-harmony", "xarray")
EXTRAS = ("lab", "interop")
RECORDS = ("", "attention", "residuals")
POSITIONS = 1000  # that sizes are told for
PROCESS = int(300e6)  # Python and torch themselves
AHEAD = 1.3  # layers in memory with memory="small": experts are read before they are needed (measured, 200 tokens)
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of a container, cgroups 2 and 1
PUBLISHED = {
    "openai/gpt-oss-20b": Config(),
    "openai/gpt-oss-120b": Config(n_layers=36, n_experts=128, layer_types=Config().layer_types[:2] * 18),
}


@dataclass(frozen=True, slots=True)
class Demand:
    """What one model takes, in bytes, and how it runs here: "fast", "small" or "no"."""

    model: str
    file: int
    fast: int  # resident with memory="fast" once all of it was used, a pass of 1,000 positions included
    small: int  # needed with memory="small": the largest layer, the unembedding, and a pass of 1,000 positions
    cache: int  # keys and values of 1,000 positions
    trace: dict[str, int]  # of 1,000 positions on disk, by `record`
    fits: str


@dataclass(frozen=True, slots=True)
class Cached:
    """A gpt-oss in the local Hugging Face cache; `problem` says why it cannot be loaded, "" if it can."""

    name: str
    bytes: int
    problem: str


@dataclass(frozen=True, slots=True)
class Package:
    """An optional package: its version, "" where it is missing, and the extra that brings it."""

    name: str
    version: str
    extra: str


@dataclass(frozen=True, slots=True)
class Report:
    """What `doctor` found; `print` it, or take `to_json()`. Sizes are bytes."""

    system: str
    cpu: str
    cores: int  # that this process may use
    threads: int  # that torch uses
    kernels: str
    rows_independent: dict[str, bool]  # by dtype, of models on the CPU
    memory: int
    memory_free: int
    memory_limit: int | None  # of the container
    gpus: tuple[str, ...]
    disk_free: int  # in the current folder, where traces go
    cache: str  # where models are looked for by name
    cache_disk_free: int
    versions: dict[str, str]
    packages: tuple[Package, ...]
    harmony: str  # where the vocabulary of gpt-oss is
    cached: tuple[Cached, ...]
    demands: tuple[Demand, ...]

    def to_json(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def doctor() -> Report:
    """What is here (processor, memory, disk, versions, models) and what each gpt-oss would take: bytes, and fit.

    Reads no weights, asks no network, and takes a second. `fits` of a model is "fast" where its file fits into 80 % of
    the memory that is free, "small" where memory="small" does, else "no"; on the CPU, in what is free at this moment.

    >>> report = wb.doctor()
    >>> [demand.model for demand in report.demands], report.demands[0].fits
    (['pocket', 'openai/gpt-oss-20b', 'openai/gpt-oss-120b'], 'fast')
    >>> print(wb.doctor())  # doctest: +SKIP
    """
    free, cache = free_memory(), cache_folder()
    return Report(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        kernels=_kernels(),
        rows_independent={name: _rows_independent(name) for name in ("float32", "bfloat16")},
        memory=psutil.virtual_memory().total,
        memory_free=free,
        memory_limit=_limit(),
        gpus=tuple(_gpus()),
        disk_free=_disk_free(Path.cwd()),
        cache=str(cache),
        cache_disk_free=_disk_free(cache),
        versions={"workbench": _version("gpt-oss-workbench"), "python": platform.python_version()}
        | {name: _version(name) for name in LIBRARIES},
        packages=tuple(_packages()),
        harmony=_harmony(),
        cached=tuple(_cached(cache)),
        demands=tuple(demand(name, c, free) for name, c in _models()),
    )


def demand(name: str, c: Config, free: int) -> Demand:
    """What a model of this shape takes, its experts in MXFP4 and the rest in bf16, and how it fits into `free` bytes.

    >>> d = demand("openai/gpt-oss-20b", Config(), free=int(16e9))
    >>> d.file, d.cache, d.fits
    (13761264768, 49152000, 'small')
    """
    dtype = default_dtype(c, None)
    word = str(dtype).removeprefix("torch.")
    file = _stored(c)
    work = budget.working_memory(c, word, POSITIONS, (), POSITIONS)
    dequantised = c.n_params * dtype.itemsize <= DEQUANTIZE_MAX_BYTES
    layer = _stored(replace(c, n_layers=1)) - _stored(replace(c, n_layers=0))
    weights = c.n_params * dtype.itemsize if dequantised else file
    small = int(AHEAD * layer) + c.d_vocab * c.d_model * dtype.itemsize + work + PROCESS
    fits = "fast" if weights <= FAST_FRACTION * free else "small" if small <= FAST_FRACTION * free else "no"
    per_position = 2 * c.n_layers * c.n_kv_heads * c.d_head * dtype.itemsize
    return Demand(
        model=name,
        file=file,
        fast=weights + work + PROCESS,
        small=small,
        cache=POSITIONS * per_position,
        trace={record: trace_bytes(c, record, word) for record in RECORDS},
        fits=fits,
    )


def trace_bytes(c: Config, record: str, dtype: str) -> int:
    """The arrays of a trace of 1,000 positions that recorded `record`; `dtype` is the model's."""
    wanted = [*always(c.n_layers), *hooks.expand(record, c.n_layers)]
    return sum(map(budget.size, budget.shapes(c, wanted, dtype, POSITIONS, 0).values()))


def _stored(c: Config) -> int:
    return int(c.n_packed * PACKED_BYTES) + (c.n_params - c.n_packed) * 2


def _models() -> Iterator[tuple[str, Config]]:
    try:
        file = embedded_folder() / "config.json"
        yield "pocket", parse_hf_config(read_json(file), str(file))
    except WorkbenchError:
        pass  # an installation without it can still run the others
    yield from PUBLISHED.items()


def cpu_name() -> str:
    """The processor, as it calls itself."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _rows_independent(dtype: str) -> bool:
    """Tried on products of random numbers: see `Model.rows_independent`, which tries those of a model."""
    try:
        from workbench.model.kernels import independence, native
        from workbench.model.kernels.linear import linear
    except (ImportError, OSError):
        return False
    generator = torch.Generator().manual_seed(1)
    sizes = (192, 192), (512, 128), (2880, 512)
    weights = [torch.randn(m, n, generator=generator).to(getattr(torch, dtype)) for n, m in sizes]
    products = [(lambda x, w=w: linear(x, w), w.shape[1]) for w in weights]
    return native.decode() is None and independence.rows_independent(products, weights[0])


def _kernels() -> str:
    try:
        from workbench.model.kernels import native
    except (ImportError, OSError) as error:
        return f"no native kernels, torch computes: {error}"
    return native.status()


def _limit() -> int | None:
    for name in LIMITS:
        try:
            text = (Path("/sys/fs/cgroup") / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 1 << 60:  # larger means that there is no limit
            return int(text)
    return None


def _gpus() -> Iterator[str]:
    for n in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(n)
        yield f"cuda:{n} {torch.cuda.get_device_name(n)}, {size_text(free)} of {size_text(total)} free"
    if torch.backends.mps.is_available():
        yield "mps (Apple); workbench runs on the CPU there"


def _disk_free(path: Path) -> int:
    """Of the disk on which `path` is, or would be."""
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    return shutil.disk_usage(there).free


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _packages() -> Iterator[Package]:
    """From the package's own metadata: what each extra brings."""
    try:
        wanted = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # a checkout that was not installed
        wanted = []
    for line in wanted:
        found = re.fullmatch(r"([\w.-]+).*;\s*extra == ['\"](\w+)['\"]", line)
        if found and found[2] in EXTRAS:
            yield Package(found[1], _version(found[1]), found[2])


def _harmony() -> str:
    kept = o200k.cache_folder() / o200k.FILE
    return str(kept) if kept.is_file() else ""


def _cached(cache: Path) -> Iterator[Cached]:
    for repo in sorted(cache.glob("models--*gpt-oss*")):
        name = repo.name.removeprefix("models--").replace("--", "/", 1)
        size, problem = 0, ""
        try:
            folder = snapshot_folder(name)
            files = hf_files(folder)
            size = sum(file.stat().st_size for file in files)
            if not files:
                problem = "no model*.safetensors in it"
            elif not (folder / "tokenizer.json").is_file():
                problem = "no tokenizer.json: it takes token ids only"
        except (WorkbenchError, OSError) as error:
            problem = str(error)
        yield Cached(name, size, problem)


def _rows(independent: dict[str, bool]) -> str:
    """Whether a position's bits depend on what is computed beside it."""
    if all(independent.values()):
        return "independent of each other: edits, patches and resumed runs are exact to the last bit"
    which = ", ".join(dtype for dtype, holds in independent.items() if not holds)
    return f"in {which} their last bits depend on the rows beside them: exact comparisons use a tolerance"


def _lines(r: Report) -> Iterator[str]:
    limit = f", the container may take {size_text(r.memory_limit)}" if r.memory_limit is not None else ""
    yield f"machine    {r.cpu}, {r.cores} cores, {r.threads} threads; {r.system}"
    yield f"kernels    {r.kernels.removeprefix('native kernels: ')}"
    yield f"rows       {_rows(r.rows_independent)}"
    yield f"memory     {size_text(r.memory_free)} free of {size_text(r.memory)}{limit}"
    yield f"GPU        {'; '.join(r.gpus) or 'none that torch sees'}"
    yield f"disk       {size_text(r.disk_free)} free here; {size_text(r.cache_disk_free)} at {r.cache}"
    yield f"versions   {', '.join(f'{name} {version or chr(8212)}' for name, version in r.versions.items())}"
    for extra in dict.fromkeys(package.extra for package in r.packages):
        mine = [package for package in r.packages if package.extra == extra]
        missing = [package.name for package in mine if not package.version]
        has = ", ".join(f"{package.name} {package.version}" for package in mine if package.version)
        lacks = f"missing: {', '.join(missing)} (pip install '{DISTRIBUTION}[{extra}]')" if missing else ""
        yield f"{extra:<10} {'; '.join(part for part in (has, lacks) if part)}"
    kept = f"vocabulary kept at {r.harmony}" if r.harmony else "none kept; rebuilt from a model's own tokenizer.json"
    yield f"tokenizer  pocket brings its own; gpt-oss: {kept}"
    for one in r.cached:
        yield f"cached     {one.name}, {size_text(one.bytes)}{f': {one.problem}' if one.problem else ''}"
    if not r.cached:
        yield f"cached     no gpt-oss. To fetch one: {download_command('openai/gpt-oss-20b')}"
    yield ""
    head = ("model", "file", "fast", "small", "kv/1k", *(f"record={record!r}" for record in RECORDS), "here")
    rows = [
        (d.model, *map(size_text, (d.file, d.fast, d.small, d.cache, *d.trace.values())), d.fits) for d in r.demands
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    for row in (head, *rows):
        first, *rest = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        yield "  ".join((first, *rest))
    yield (
        f'fast, small: memory that memory="fast" keeps and memory="small" needs; kv, record: keys and values, and a '
        f"trace, of {POSITIONS:,} tokens; here: by what is free now, on the CPU"
    )
