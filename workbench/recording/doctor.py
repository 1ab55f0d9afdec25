"""Reports the hardware and versions of this machine and which gpt-oss models it can run, without loading a model."""

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
from workbench.errors import ModelNotFound, WorkbenchError
from workbench.model.checkpoints.bundled import embedded_folder
from workbench.model.checkpoints.decoding_copies import copies_fit
from workbench.model.checkpoints.folder_files import hf_files, read_json
from workbench.model.checkpoints.hf_config import parse_hf_config
from workbench.model.checkpoints.hub import cache_folder, download_command, snapshot_folder
from workbench.model.checkpoints.validate import DEQUANTIZE_MAX_BYTES, FAST_FRACTION, PACKED_BYTES, default_dtype
from workbench.model.config import Config
from workbench.model.memory import cgroup_limits, free_memory
from workbench.recording import budget
from workbench.recording.plan import always
from workbench.recording.published import PUBLISHED
from workbench.text import brief, printable, size_text
from workbench.untrusted import exists, file_names, is_file, is_folder

DISTRIBUTION = "gpt-oss-workbench"
LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "openai-harmony", "xarray")
EXTRAS = ("lab", "interop")
RECORDS = ("", "attention", "residuals")
POSITIONS = 1000  # for the reported sizes
PROCESS_BYTES = int(300e6)  # Python and torch themselves
LAYERS_IN_MEMORY = 1.3  # with memory="small", which prefetches experts (measured, 200 tokens)


@dataclass(frozen=True, slots=True)
class Demand:
    """The memory and disk space of one model, in bytes, and how it runs here: "fast", "small" or "no"."""

    model: str
    file: int
    fast: int  # with memory="fast" after all weights were used, including a pass of 1,000 positions
    small: int  # with memory="small": the largest layer, the unembedding, and a pass of 1,000 positions
    cache: int  # KV cache of 1,000 positions
    trace: dict[str, int]  # of 1,000 positions on disk, by `record`
    fits: str
    copies: bool  # whether there is room for the copies of weights that make decoding faster


@dataclass(frozen=True, slots=True)
class Cached:
    """A gpt-oss in the local Hugging Face cache; `problem` is the reason why it cannot be loaded, or ""."""

    name: str
    bytes: int
    problem: str


@dataclass(frozen=True, slots=True)
class Package:
    """An optional package: its version ("" if it is missing), and the extra that installs it."""

    name: str
    version: str
    extra: str


@dataclass(frozen=True, slots=True)
class Report:
    """The report of `doctor`, for `print` or `to_json()`. Sizes are in bytes."""

    system: str
    cpu: str
    cores: int  # available to this process
    threads: int  # used by torch
    kernels: str
    rows_independent: dict[str, bool]  # by dtype, of models on the CPU
    memory: int
    memory_free: int
    memory_limit: int | None  # of the container
    gpus: tuple[str, ...]
    disk_free: int  # in the current folder, the default for traces
    cache: str  # the folder in which models are found by name
    cache_disk_free: int
    versions: dict[str, str]
    packages: tuple[Package, ...]
    harmony: str  # path of the vocabulary of gpt-oss; "" if it is not cached
    cached: tuple[Cached, ...]
    demands: tuple[Demand, ...]

    def to_json(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(map(printable, _lines(self)))


def doctor() -> Report:
    """A Report on this machine (processor, memory, disk, versions, models) and the memory that each gpt-oss needs.

    Reads no weights, uses no network, and takes a second. `fits` of a model is "fast" if its weights fit into 80 % of
    the free memory, "small" if those of memory="small" do, else "no". It is for the CPU, with the memory that is free
    now.

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
        disk_free=_disk_free(_here()),
        cache=str(cache),
        cache_disk_free=_disk_free(_here() / cache),
        versions={"workbench": _version("gpt-oss-workbench"), "python": platform.python_version()}
        | {name: _version(name) for name in LIBRARIES},
        packages=tuple(_packages()),
        harmony=_harmony(),
        cached=tuple(_cached(cache)),
        demands=tuple(demand(name, c, free) for name, c in _models()),
    )


def demand(name: str, c: Config, free: int) -> Demand:
    """The Demand of a model of this shape, experts in MXFP4 and the rest in bf16, with `free` bytes of memory.

    >>> d = demand("openai/gpt-oss-20b", Config(), free=int(16e9))
    >>> d.file, d.cache, d.fits
    (13761264768, 49152000, 'small')
    """
    dtype = default_dtype(c, None)
    dtype_name = str(dtype).removeprefix("torch.")
    file = _stored(c)
    work = budget.working_memory(c, dtype_name, POSITIONS, (), POSITIONS)
    dequantized = c.n_params * dtype.itemsize <= DEQUANTIZE_MAX_BYTES
    layer = _stored(replace(c, n_layers=1)) - _stored(replace(c, n_layers=0))
    weights = c.n_params * dtype.itemsize if dequantized else file
    small = int(LAYERS_IN_MEMORY * layer) + c.d_vocab * c.d_model * dtype.itemsize + work + PROCESS_BYTES
    fits = "fast" if weights <= FAST_FRACTION * free else "small" if small <= FAST_FRACTION * free else "no"
    per_position = 2 * c.n_layers * c.n_kv_heads * c.d_head * dtype.itemsize
    return Demand(
        model=name,
        file=file,
        fast=weights + work + PROCESS_BYTES,
        small=small,
        cache=POSITIONS * per_position,
        trace={record: trace_bytes(c, record, dtype_name) for record in RECORDS},
        fits=fits,
        copies=copies_fit(c, dtype, free),
    )


def trace_bytes(c: Config, record: str, dtype: str) -> int:
    """Bytes of the arrays of a trace of 1,000 positions that records `record`; `dtype` is the model's."""
    names = [*always(c.n_layers), *hooks.expand(record, c.n_layers)]
    return sum(map(budget.size, budget.shapes(c, names, dtype, POSITIONS, 0).values()))


def _stored(c: Config) -> int:
    return int(c.n_packed * PACKED_BYTES) + (c.n_params - c.n_packed) * 2


def _models() -> Iterator[tuple[str, Config]]:
    try:
        file = embedded_folder() / "config.json"
        yield "pocket", parse_hf_config(read_json(file), str(file))
    except WorkbenchError:
        pass  # an installation without pocket can still run the others
    yield from PUBLISHED.items()


def cpu_name() -> str:
    """The model name of the processor."""
    try:
        model_name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model_name = None
    return model_name[1].strip() if model_name else platform.processor() or platform.machine()


def _rows_independent(dtype: str) -> bool:
    """Whether a row of a matrix product is independent of the other rows, for random matrices of this dtype.

    `Model.rows_independent` tests the matrices of a model.
    """
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
    """The lowest limit of the container and of the groups around it; None without one."""
    return min((limit for limit, _ in cgroup_limits()), default=None)


def _gpus() -> Iterator[str]:
    for n in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(n)
        yield f"cuda:{n} {torch.cuda.get_device_name(n)}, {size_text(free)} of {size_text(total)} free"
    if torch.backends.mps.is_available():
        yield "mps (Apple); workbench runs on the CPU there"


def _disk_free(path: Path) -> int:
    """The free bytes on the disk of `path`, which need not exist."""
    existing = next((p for p in (path, *path.parents) if exists(p)), Path("/"))
    return shutil.disk_usage(existing).free


def _here() -> Path:
    try:
        return Path.cwd()
    except OSError:  # the current folder was deleted
        return Path("/")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _packages() -> Iterator[Package]:
    """The packages of each extra, from workbench's own metadata."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:  # a checkout that was not installed
        requirements = []
    for requirement in requirements:
        parts = re.fullmatch(r"([\w.-]+).*;\s*extra == ['\"](\w+)['\"]", requirement)
        if parts and parts[2] in EXTRAS:
            yield Package(parts[1], _version(parts[1]), parts[2])


def _harmony() -> str:
    file = o200k.cache_folder() / o200k.FILE
    return str(file) if is_file(file) else ""


def _cached(cache: Path) -> Iterator[Cached]:
    """Every gpt-oss in the cache. Whatever is wrong with one, the others are listed too."""
    names = file_names(cache, ModelNotFound) if is_folder(cache) and os.access(cache, os.R_OK) else []
    for repo in names:
        if not repo.startswith("models--") or "gpt-oss" not in repo:
            continue
        name = repo.removeprefix("models--").replace("--", "/", 1)
        size, problem = 0, ""
        try:
            folder = snapshot_folder(name)
            files = hf_files(folder)
            size = sum(file.stat().st_size for file in files if is_file(file))
            if not files:
                problem = "it has no model*.safetensors"
            elif unreadable := next((file.name for file in files if not is_file(file)), ""):
                problem = f"{unreadable} is not a file, or leads to none"
            elif not is_file(folder / "tokenizer.json"):
                problem = "it has no tokenizer.json, so it accepts token ids only"
        except (WorkbenchError, OSError) as error:
            problem = str(error)
        yield Cached(brief(name), size, problem)


def _rows(independent: dict[str, bool]) -> str:
    """The report's line on whether the bits of a row are independent of the other rows."""
    if all(independent.values()):
        return "independent: edits, patches and resumed runs are exact to the last bit"
    which = ", ".join(dtype for dtype, holds in independent.items() if not holds)
    return f"in {which}, the last bits of a row depend on the other rows: exact comparisons use a tolerance"


def _lines(r: Report) -> Iterator[str]:
    limit = f", limit of the container {size_text(r.memory_limit)}" if r.memory_limit is not None else ""
    yield f"machine    {r.cpu}, {r.cores} cores, {r.threads} threads; {r.system}"
    yield f"kernels    {r.kernels.removeprefix('native kernels: ')}"
    yield f"rows       {_rows(r.rows_independent)}"
    yield f"memory     {size_text(r.memory_free)} free of {size_text(r.memory)}{limit}"
    yield f"GPU        {'; '.join(r.gpus) or 'none found by torch'}"
    if any(gpu.startswith("cuda") for gpu in r.gpus):
        yield "           idle unless asked for: wb.Model(…, device='cuda'), or --device cuda in the shell"
    yield f"disk       {size_text(r.disk_free)} free here; {size_text(r.cache_disk_free)} at {r.cache}"
    yield f"versions   {', '.join(f'{name} {version or chr(8212)}' for name, version in r.versions.items())}"
    for extra in dict.fromkeys(package.extra for package in r.packages):
        of_extra = [package for package in r.packages if package.extra == extra]
        missing = [package.name for package in of_extra if not package.version]
        installed = ", ".join(f"{package.name} {package.version}" for package in of_extra if package.version)
        hint = f"missing: {', '.join(missing)} (pip install '{DISTRIBUTION}[{extra}]')" if missing else ""
        yield f"{extra:<10} {'; '.join(part for part in (installed, hint) if part)}"
    cached = (
        f"vocabulary cached at {r.harmony}" if r.harmony else "not cached; rebuilt from a model's own tokenizer.json"
    )
    yield f"tokenizer  pocket has its own; gpt-oss: {cached}"
    for one in r.cached:
        yield f"cached     {one.name}, {size_text(one.bytes)}{f': {one.problem}' if one.problem else ''}"
    if not r.cached:
        yield f"cached     no gpt-oss. To download one: {download_command('openai/gpt-oss-20b')}"
    yield ""
    head = (
        "model",
        "file",
        "fast",
        "small",
        "kv/1k",
        *(f"record={record!r}" for record in RECORDS),
        "here",
        "copies",
    )
    rows = [
        (
            d.model,
            *map(size_text, (d.file, d.fast, d.small, d.cache, *d.trace.values())),
            d.fits,
            "yes" if d.copies else "no",
        )
        for d in r.demands
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    for row in (head, *rows):
        first, *rest = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        yield "  ".join((first, *rest))
    yield (
        f'fast, small: memory needed with memory="fast" and memory="small"; kv/1k, record: KV cache and trace of '
        f"{POSITIONS:,} tokens; here: whether it fits into the memory that is free now, on the CPU; copies: whether "
        f'memory="fast" has room for 12-bit planes and an int8 screen, with which tokens are decoded faster'
    )
