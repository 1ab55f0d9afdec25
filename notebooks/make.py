"""Builds notebooks from their sources: `python notebooks/make.py [NAME…]` runs NN_name.py and writes NN_name.ipynb.

`python notebooks/make.py --text [NAME…]` runs nothing: it renews the prose of notebooks whose code has not changed.

The source (jupytext's percent format) is edited and reviewed; the notebook has the same cells with their outputs. A
cell's title is its id in the notebook. Differences between runs without meaning (times, random ids) are removed or
replaced, so building a notebook twice gives the same file. The file is written atomically: if a cell fails, the old
notebook stays.
"""

import hashlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "name": "python",
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "pygments_lexer": "ipython3",
    },
}
# One thread: pocket is so small that two threads mostly wait for each other.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
_MARK = re.compile(r'data-wb-still="([0-9a-f]+)"')
_WIDGET = "application/vnd.jupyter.widget-view+json"


def sources() -> list[Path]:
    """The sources in this folder, in order."""
    return sorted(HERE.glob("[0-9][0-9]_*.py"))


def read(source: Path) -> NotebookNode:
    """The notebook of a source, without outputs. Raises ValueError for a cell whose title is not a valid id."""
    notebook = jupytext.read(source, fmt="py:percent")
    seen: set[str] = set()
    for place, cell in enumerate(notebook.cells, 1):
        title = cell.metadata.pop("title", "")
        name = "-".join(title.split())
        where = f"{source.name}: cell {place}, which begins with {cell.source.partition(chr(10))[0][:60]!r},"
        if not re.fullmatch(r"[a-z]+(-[a-z]+)*", name) or len(name) > 64:
            raise ValueError(f"{where} has the title {title!r}; use one or two lower-case words after '# %%'")
        if name in seen:
            raise ValueError(f"{where} has the title {title!r} of an earlier cell; titles must be unique")
        if cell.metadata:
            raise ValueError(f"{where} has settings ({', '.join(cell.metadata)}); only a title is allowed")
        seen.add(name)
        cell.id = name
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat_minor = 5
    nbformat.validate(notebook)
    return notebook


def run(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """The notebook with the outputs of its cells, run from top to bottom in `folder` in a new kernel."""
    os.environ.update(ENVIRONMENT)  # the kernel has this process's environment
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        store_widget_state=False,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    notebook.metadata = nbformat.from_dict(METADATA)  # removes the version that the kernel wrote there
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _joined(output for output in cell.outputs if not _is_a_bar(output))
            for place, output in enumerate(cell.outputs):
                _settle(output, hashlib.sha256(f"{cell.id} {place}".encode()).hexdigest())
    return notebook


def with_new_prose(source: NotebookNode, stored: NotebookNode) -> NotebookNode:
    """The notebook of a source with the outputs of the stored one. Raises ValueError if a code cell was changed."""
    old = {cell.id: cell for cell in stored.cells if cell.cell_type == "code"}
    new = [cell for cell in source.cells if cell.cell_type == "code"]
    changed = [cell.id for cell in new if cell.id not in old or old[cell.id].source != cell.source]
    if changed or [cell.id for cell in new] != list(old):
        raise ValueError(f"code cells were changed ({', '.join(changed) or 'their order'}); leave out --text")
    for cell in new:
        cell.outputs, cell.execution_count = old[cell.id].outputs, old[cell.id].execution_count
    return source


def _is_a_bar(output: NotebookNode) -> bool:
    """Whether an output is a progress bar: the empty text of one that ended, or a widget that is not a live view.

    A live view's output has no text of its own (workbench.views.notebook), because its snapshot stands above it.
    """
    data = output.get("data", {})
    return data == {"text/plain": ""} or (_WIDGET in data and data.get("text/plain") != "")


def _joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """The outputs with consecutive prints joined, because how they are split depends on timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == "stream" and joined[-1].get("name") == output.name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _settle(output: NotebookNode, name: str) -> None:
    """Replaces the random ids in a view by `name`, which depends only on the output's place in the notebook."""
    data = output.get("data", {})
    if _WIDGET in data:
        data[_WIDGET]["model_id"] = name[:32]
    for mark in set(_MARK.findall(data.get("text/html", ""))):
        data["text/html"] = data["text/html"].replace(mark, name[:12])


def write(notebook: NotebookNode, path: Path) -> None:
    """Writes the notebook atomically."""
    nbformat.validate(notebook)
    text = nbformat.writes(notebook).rstrip("\n") + "\n"
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def main(names: Sequence[str]) -> int:
    known = {source.stem: source for source in sources()}
    only_text = "--text" in names
    requested = [Path(name).stem for name in names if name != "--text"] or list(known)
    unknown = [name for name in requested if name not in known]
    if unknown:
        print(f"no such notebook: {', '.join(unknown)}; available: {', '.join(known)}", file=sys.stderr)
        return 2
    for name in requested:
        start = time.monotonic()
        try:
            notebook = read(known[name])
            if only_text:
                notebook = with_new_prose(notebook, nbformat.read(HERE / f"{name}.ipynb", as_version=4))
            else:
                notebook = run(notebook, HERE)
        except (ValueError, FileNotFoundError, CellExecutionError) as error:
            print(f"{name}: failed.\n{error}", file=sys.stderr)
            return 1
        write(notebook, HERE / f"{name}.ipynb")
        print(f"{name}.ipynb  {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
