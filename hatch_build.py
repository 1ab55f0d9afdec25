"""Compiles the native kernels while a wheel is built; without a C compiler the wheel is pure Python."""

import importlib.util
import sys
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILD = "workbench/model/kernels/build.py"


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict) -> None:
        """For wheels and editable installs alike; an editable one finds the library where it is compiled."""
        for notebook in sorted(Path(self.root).glob("notebooks/[0-9][0-9]_*.ipynb")):
            build_data["force_include"][str(notebook)] = f"workbench/_notebooks/{notebook.name}"
        build = _by_path(Path(self.root) / BUILD)
        try:
            library = build.build()
        except build.CannotBuild as e:
            self.app.display_warning(f"workbench without native kernels, torch computes: {e}")
            return
        # git ignores the library, the wheel must not
        build_data["artifacts"].append(f"/{library.relative_to(self.root).as_posix()}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"  # loaded by ctypes: any Python, one kind of machine


def _platform() -> str:
    if sys.platform == "darwin":  # a universal Python would name two kinds
        from packaging.tags import mac_platforms

        return next(mac_platforms())
    return sysconfig.get_platform().replace("-", "_").replace(".", "_")


def _by_path(path: Path):
    """The module, without importing workbench, whose dependencies are not there yet."""
    spec = importlib.util.spec_from_file_location("workbench_kernels_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
