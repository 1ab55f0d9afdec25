"""Finds a model of huggingface.co in the local cache, by its name. Never downloads."""

import os
import re
from pathlib import Path

from workbench.errors import ModelNotFound
from workbench.paths import expanded
from workbench.text import brief
from workbench.untrusted import exists, file_names, is_folder, read_text

MAX_REVISION_BYTES = 1000  # of refs/main, which has 40
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def cache_folder() -> Path:
    """The folder where `hf download` puts models: $HF_HUB_CACHE, else $HF_HOME/hub, else ~/.cache/huggingface/hub."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if cache:
        return expanded(os.path.expandvars(cache))
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return expanded(os.path.expandvars(home)) / "hub"


def snapshot_folder(name: str) -> Path:
    """The folder of the newest downloaded snapshot of `name`. Raises ModelNotFound with the path and a fetch command.

    >>> snapshot_folder("openai/gpt-oss-20b")  # doctest: +SKIP
    PosixPath('/home/me/.cache/huggingface/hub/models--openai--gpt-oss-20b/snapshots/6cee5e81ee83')
    """
    repo = cache_folder() / ("models--" + name.replace("/", "--"))
    snapshots = repo / "snapshots"
    main = repo / "refs" / "main"
    if exists(main):
        revision = read_text(main, ModelNotFound, MAX_REVISION_BYTES).strip()
    else:  # fetched by revision: there is no refs/main, and a single snapshot is unambiguous
        names = file_names(snapshots, ModelNotFound) if is_folder(snapshots) else []
        revisions = [name for name in names if is_folder(snapshots / name)]
        revision = revisions[0] if len(revisions) == 1 else ""
    if re.fullmatch(r"\w+", revision) and is_folder(snapshots / revision):
        return snapshots / revision
    raise ModelNotFound(
        f"{brief(name)!r} is not in the Hugging Face cache: there is no "
        f"{brief(str(snapshots), 300)}/{brief(revision) or '…'} (revision from "
        f"{brief(str(main), 300)}). Fetch it with:  {download_command(brief(name))}"
    )


def download_command(name: str) -> str:
    """The command that downloads `name`, without the two other copies of the weights in OpenAI's repositories.

    >>> download_command("openai/gpt-oss-20b")
    'hf download openai/gpt-oss-20b --exclude "original/*" "metal/*"'
    """
    return f'hf download {name} --exclude "original/*" "metal/*"'
