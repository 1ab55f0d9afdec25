"""The ES modules in node, without a browser; and what is served of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from workbench.views import snapshot_html
from workbench.views.payload import packed
from workbench.views.script import HERE, script, stripped, style, tokenized

HOME = Path(__file__).parent
MODULES = sorted(path.stem for path in HERE.glob("*.js"))
NODE = shutil.which("node", path=os.fspath(Path(sys.executable).parent)) or shutil.which("node")
TOOLS = HOME.parent / "js"


def node_test(file: Path, **files: Path) -> None:
    """Runs the tests of a file in node; `files` are environment variables that name what it reads."""
    assert NODE
    run = subprocess.run(
        [NODE, "--test", str(file)],
        env=os.environ | {name: str(path) for name, path in files.items()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:]
    assert "fail 0" in run.stdout and "pass 0" not in run.stdout


@pytest.mark.skipif(NODE is None, reason="no node on this machine: the browser tests run the modules")
def test_the_modules_do_in_node_what_they_should(tmp_path: Path):
    header, arrays = wb.views.tokens(made.run()).payload()
    values = np.random.default_rng(0).normal(size=1000).astype("f4")
    values[3] = np.nan
    arrays |= {"numbers": np.arange(6, dtype="i4").reshape(2, 3), "values": values}
    arrays |= {"most": snapshot_html.columns(values, "max", 64), "least": snapshot_html.columns(values, "min", 64)}
    (tmp_path / "payload").write_bytes(packed(header, arrays))
    node_test(HOME / "modules.test.mjs", PAYLOAD=tmp_path / "payload")


@pytest.mark.parametrize("module", MODULES)
def test_all_that_a_view_needs_is_small(module: str):
    assert len(script(module).encode()) + len(style().encode()) < 60_000
    assert len(script(module).encode()) < 44_000  # what is sent, not the source


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_joined_with_what_it_imports(module: str):
    text = script(module)
    assert "import " not in text
    assert "export " not in text
    if module.endswith("_view"):
        assert text.count("const BUSES") == 1  # what all views of a page share
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


# Pairs of source and what is sent of it: space goes where it separates nothing, and nothing goes from within a token.
STRIPPED = {
    "const a = 1; // one\n/* two */ const b = 2;\n": "const a=1;\nconst b=2;",
    'const url = "https://a  b"; // c\n': 'const url="https://a  b";',
    "const s = 'a // b', t = `c /* d */  ${e /* f */ + `g  ${h}`}  // i`;": (
        "const s='a // b',t=`c /* d */  ${e /* f */ + `g  ${h}`}  // i`;"
    ),
    "const r = /[/\"'`] \\/ {2}/g.test(a / b / c);": "const r=/[/\"'`] \\/ {2}/g.test(a/b/c);",
    "return /a  b/;": "return/a  b/;",
    "x = a + +b - -c + ++d; y = a / /b/.length;": "x=a+ +b- -c+ ++d;y=a/ /b/.length;",
    "const f = async (x) => {\n  await g(\n    x,\n    [, , 1],\n  );\n};\n": "const f=async(x)=>{await g(x,[,,1]);};",
    "export function one() {}\nexport const two = 1 .toFixed();\n": "function one(){}\nconst two=1 .toFixed();",
    "if (a) b();\nelse c();\n": "if(a)b();\nelse c();",
}


@pytest.mark.parametrize("source", STRIPPED)
def test_stripping_leaves_the_tokens_of_the_source(source: str):
    assert stripped(source) == STRIPPED[source]
    assert "".join(tokenized(source)) == source


@pytest.mark.skipif(
    NODE is None or not (TOOLS / "node_modules" / "acorn").exists(),
    reason="no parser of JavaScript here: run `make js`",
)
def test_what_is_sent_is_the_program_of_the_source(tmp_path: Path):
    sources = [(path.stem, path.read_text("utf-8")) for path in sorted(HERE.glob("*.js"))]
    sources += [(source, source) for source in STRIPPED if not source.startswith("return")]
    triples = [(name, source, stripped(source)) for name, source in sources]
    (tmp_path / "sources.json").write_text(json.dumps(triples), "utf-8")
    node_test(TOOLS / "stripped.test.mjs", SOURCES=tmp_path / "sources.json")
