"""How much memory is free for a run: on the machine, in its container, and for this process."""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from workbench.errors import BudgetError
from workbench.text import brief

UNLIMITED = 1 << 60  # cgroups 1 writes a number near 2**63 where there is no limit
ROOT = Path("/")
# In the messages of torch's allocator of the CPU (a RuntimeError without a class of its own) and of CUDA's libraries.
_ALLOCATION_FAILED = (
    "can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory", "bad_alloc",
    "ALLOC_FAILED",
)  # fmt: skip


def free_memory(device: str | torch.device = "cpu") -> int:
    """Free memory in bytes: of the GPU; or of the machine, within the limits of its containers and of this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    free = [psutil.virtual_memory().available, *(limit - used for limit, used in cgroup_limits())]
    return max(0, min([*free, *_free_in_process()]))


def cgroup_limits(root: Path = ROOT) -> list[tuple[int, int]]:
    """Limit and usage in bytes of this process's control group and of all groups around it that have a limit.

    A container manager, Slurm and systemd put the limit on a group deep in the tree, and any of the groups around it
    may have a lower one. `root` is the folder with proc and sys.
    """
    limits = [_cgroup_limit(folder) for folder in _cgroup_folders(root)]
    return [limit for limit in limits if limit is not None]


@contextmanager
def allocation_errors() -> Iterator[None]:
    """Raises BudgetError in place of the errors of torch and numpy for memory that cannot be allocated."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise BudgetError(out_of_memory_text(error)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, numpy or torch says that memory could not be allocated."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _ALLOCATION_FAILED)


def out_of_memory_text(error: BaseException) -> str:
    """What a BudgetError says of such an exception."""
    reason = brief((str(error).strip() or type(error).__name__).partition("\n")[0], 200)
    return (
        f"the memory ran out ({reason}). Record less (record=''), shorten the text, write the trace to disk during the "
        f"run (to=path), or load the model with memory='small'."
    )


def _cgroup_folders(root: Path) -> Iterator[Path]:
    """The folders of the groups with a memory controller, of cgroups 2 and 1: this process's, then those around it."""
    try:
        groups = (root / "proc/self/cgroup").read_text("utf-8", "replace").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux
        return
    for group in groups:
        _, controllers, path = [*group.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        for mounted_group, mount in _mounts(mounts, version=1 if controllers else 2):
            folder = root / mount.lstrip("/")
            # The mount may show only a part of the tree: that of the container.
            inside = path.removeprefix(mounted_group) if _contains(mounted_group, path) else ""
            parts = [part for part in inside.split("/") if part and part != ".."]
            for n in range(len(parts), -1, -1):
                yield folder.joinpath(*parts[:n])


def _mounts(mountinfo: list[str], version: int) -> Iterator[tuple[str, str]]:
    """The group that is mounted, and the folder where it is, for each mount of that version's memory controller."""
    for line in mountinfo:
        before, _, after = line.partition(" - ")
        fields, (kind, *options) = before.split(), after.split() or [""]
        if len(fields) < 5:
            continue
        if (version == 2 and kind == "cgroup2") or (
            version == 1 and kind == "cgroup" and "memory" in options[-1].split(",")
        ):
            yield _unescaped(fields[3]), _unescaped(fields[4])


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)  # a space is \040


def _contains(group: str, path: str) -> bool:
    return group == "/" or path == group or path.startswith(f"{group}/")


def _cgroup_limit(folder: Path) -> tuple[int, int] | None:
    """Limit and usage of one group; None if it has no limit."""
    for limits, usage, cache in (
        (("memory.max", "memory.high"), "memory.current", "inactive_file"),
        (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
    ):
        texts = [_read(folder / name) for name in limits]
        known = [int(text) for text in texts if text.isdecimal() and int(text) < UNLIMITED]
        if known:
            used = _read(folder / usage)
            return min(known), (int(used) if used.isdecimal() else 0) - _page_cache(folder, cache)
    return None


def _page_cache(folder: Path, name: str) -> int:
    """Bytes of page cache, which count as the group's usage although they are freed when memory is short."""
    lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
    return next((int(line[1]) for line in lines if len(line) == 2 and line[0] == name and line[1].isdecimal()), 0)


def _read(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def _free_in_process() -> Iterator[int]:
    """What `ulimit -v` (address space) and `ulimit -d` (data) leave for this process."""
    used = psutil.Process().memory_info()
    for limit, n_used in (("RLIMIT_AS", used.vms), ("RLIMIT_DATA", getattr(used, "data", 0))):
        soft = resource.getrlimit(getattr(resource, limit))[0] if hasattr(resource, limit) else -1
        if soft not in (-1, resource.RLIM_INFINITY):
            yield soft - n_used
