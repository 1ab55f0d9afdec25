"""How much memory is free for a run."""

from pathlib import Path

import psutil
import torch


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


def _inactive_page_cache(stat: str) -> int:
    """Bytes of page cache, which count as the container's usage although they are freed when memory is short."""
    return next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
