"""Free memory: the least that the machine, any control group around the process, and the process's limits leave."""

import subprocess
import sys

import psutil
import pytest
import torch

from workbench.errors import BudgetError
from workbench.model.memory import allocation_errors, cgroup_limits, free_memory

MOUNT = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"


def test_the_limits_of_all_groups_around_the_process_are_found(tmp_path):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/slice/job")
    (tmp_path / "proc" / "self" / "mountinfo").write_text(MOUNT)
    group = tmp_path / "sys" / "fs" / "cgroup" / "slice"
    for folder, limit, used in ((group, "500", "100"), (group / "job", "900", "200")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    assert cgroup_limits(tmp_path) == [(900, 200), (500, 100)]
    (group / "memory.stat").write_text("anon 7\ninactive_file 60\n")
    assert cgroup_limits(tmp_path) == [(900, 200), (500, 40)]
    assert cgroup_limits(tmp_path / "nowhere") == []


def test_a_limit_of_this_process_bounds_the_free_memory():
    assert 0 < free_memory() <= psutil.virtual_memory().total
    code = (
        "import resource; from workbench.model.memory import free_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); print(free_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 4 << 30


def test_an_allocation_that_fails_is_a_budget_error_and_other_errors_stay():
    with pytest.raises(BudgetError, match="the memory ran out"), allocation_errors():
        torch.empty(1 << 50)
    with pytest.raises(BudgetError, match="the memory ran out"), allocation_errors():
        raise MemoryError
    with pytest.raises(RuntimeError, match="another"), allocation_errors():
        raise RuntimeError("another")
