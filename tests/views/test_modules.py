"""The ES modules in node, without a browser; and what is served of them."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from workbench.views import snapshot_html
from workbench.views.payload import packed
from workbench.views.script import HERE, script, style

HOME = Path(__file__).parent
MODULES = sorted(path.stem for path in HERE.glob("*.js"))


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on this machine: the browser tests run the modules")
def test_the_modules_do_in_node_what_they_should(tmp_path: Path):
    header, arrays = wb.views.tokens(made.run()).payload()
    values = np.random.default_rng(0).normal(size=1000).astype("f4")
    values[3] = np.nan
    arrays |= {"numbers": np.arange(6, dtype="i4").reshape(2, 3), "values": values}
    arrays |= {"most": snapshot_html.columns(values, "max", 64), "least": snapshot_html.columns(values, "min", 64)}
    (tmp_path / "payload").write_bytes(packed(header, arrays))
    run = subprocess.run(
        ["node", "--test", str(HOME / "modules.test.mjs")],
        env=os.environ | {"PAYLOAD": str(tmp_path / "payload")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert "# fail 0" in run.stdout or "fail 0" in run.stdout


@pytest.mark.parametrize("module", MODULES)
def test_all_that_a_view_needs_is_small(module: str):
    assert len(script(module).encode()) + len(style().encode()) < 60_000
    assert len(script(module).encode()) < 50_000


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_joined_with_what_it_imports(module: str):
    text = script(module)
    assert "import " not in text
    assert "export " not in text
    names = [
        line.split("(")[0].split()[-1]
        for line in text.splitlines()
        if line.startswith(("function ", "async function "))
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "danger", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
)
def test_no_module_makes_markup_or_code_of_text(danger: str):
    assert danger not in script(*MODULES)
