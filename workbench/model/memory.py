"""How much memory is free for a run."""

from pathlib import Path

import psutil
import torch

from workbench.text import visible

# In the messages of torch's allocator of the CPU (a RuntimeError without a class of its own) and of CUDA's libraries.
_ALLOCATION_FAILED = (
    "can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory", "bad_alloc",
    "ALLOC_FAILED",
)  # fmt: skip


def free_memory(device: str | torch.device = "cpu") -> int:
    """Free memory in bytes: of the GPU, or of the machine and within the limit of its container."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    free = psutil.virtual_memory().available
    root = Path("/sys/fs/cgroup")
    for limit, used, stat in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            n_limit, n_used = (root / limit).read_text().strip(), (root / used).read_text().strip()
            if n_limit.isdigit() and int(n_limit) < 1 << 60:  # larger means that there is no limit
                free = min(free, int(n_limit) - int(n_used) + _inactive_page_cache((root / stat).read_text()))
        except OSError:
            continue
    return max(free, 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, numpy or torch says that memory could not be allocated."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _ALLOCATION_FAILED)


def out_of_memory_text(error: BaseException) -> str:
    """What a BudgetError says of such an exception."""
    reason = visible((str(error).strip() or type(error).__name__).partition("\n")[0])[:200]
    return (
        f"the memory ran out during the run ({reason}). Record less (record=''), shorten the text, or write the trace "
        f"to disk during the run (to=path)."
    )


def _inactive_page_cache(stat: str) -> int:
    """Bytes of page cache, which count as the container's usage although they are freed when memory is short."""
    return next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
