"""How much memory a run may still take."""

from pathlib import Path

import psutil
import torch


def free_memory(device: str | torch.device = "cpu") -> int:
    """Bytes that a run may still take: of the machine, of the container's limit, or of the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    free = psutil.virtual_memory().available
    root = Path("/sys/fs/cgroup")
    for limit, used, about in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            most, now = (root / limit).read_text().strip(), (root / used).read_text().strip()
            if most.isdigit() and int(most) < 1 << 60:  # larger means that there is no limit
                free = min(free, int(most) - int(now) + _gives_way((root / about).read_text()))
        except OSError:
            continue
    return max(free, 0)


def _gives_way(stat: str) -> int:
    """The page cache, which a container's use counts and which is dropped when memory is short."""
    return next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
