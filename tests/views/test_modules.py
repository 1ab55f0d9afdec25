"""The ES modules in node, without a browser, and the joined scripts that are sent."""

import json
import os
import re
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
from workbench.views.script import HERE, _add, script, stripped, style, tokenized

HOME = Path(__file__).parent
MODULES = sorted(path.stem for path in HERE.glob("*.js"))
NODE = shutil.which("node", path=os.fspath(Path(sys.executable).parent)) or shutil.which("node")
TOOLS = HOME.parent / "js"


def node_test(file: Path, **files: Path) -> None:
    """Run the tests of a file in node; `files` are environment variables with the paths that it reads."""
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
def test_the_module_tests_pass_in_node(tmp_path: Path):
    header, arrays = wb.views.tokens(made.run()).payload()
    values = np.random.default_rng(0).normal(size=1000).astype("f4")
    values[3] = np.nan
    arrays |= {"numbers": np.arange(6, dtype="i4").reshape(2, 3), "values": values}
    arrays |= {"maxima": snapshot_html.columns(values, "max", 64), "minima": snapshot_html.columns(values, "min", 64)}
    (tmp_path / "payload").write_bytes(packed(header, arrays))
    node_test(HOME / "modules.test.mjs", PAYLOAD=tmp_path / "payload")


@pytest.mark.parametrize("module", MODULES)
def test_script_and_style_of_a_view_are_small(module: str):
    more = 11_000 if module == "summary_view" else 0  # it has the score sheet in it, which it opens
    assert len(script(module).encode()) + len(style().encode()) < 61_000 + more
    assert len(script(module).encode()) < 52_000 + more  # stripped, as sent


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_joined_with_its_imports(module: str):
    text = script(module)
    assert "import " not in text
    assert "export " not in text
    if module.endswith("_view"):
        assert text.count("const BUSES") == 1  # shared by all views of a page
    added: dict[str, str] = {}
    _add(module, added)
    sources = "".join((HERE / f"{name}.js").read_text("utf-8") for name in added)
    names = re.findall(r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+)", sources, re.MULTILINE)
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "danger", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
)
def test_no_module_turns_text_into_markup_or_code(danger: str):
    assert danger not in script(*MODULES)


# Source -> stripped: unneeded white space is removed, and tokens stay unchanged.
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
def test_stripping_keeps_the_tokens_of_the_source(source: str):
    assert stripped(source) == STRIPPED[source]
    assert "".join(tokenized(source)) == source


@pytest.mark.skipif(
    NODE is None or not (TOOLS / "node_modules" / "acorn").exists(),
    reason="no parser of JavaScript here: run `make js`",
)
def test_stripped_modules_have_the_syntax_trees_of_their_sources(tmp_path: Path):
    sources = [(path.stem, path.read_text("utf-8")) for path in sorted(HERE.glob("*.js"))]
    sources += [(source, source) for source in STRIPPED if not source.startswith("return")]
    triples = [(name, source, stripped(source)) for name, source in sources]
    (tmp_path / "sources.json").write_text(json.dumps(triples), "utf-8")
    node_test(TOOLS / "stripped.test.mjs", SOURCES=tmp_path / "sources.json")
