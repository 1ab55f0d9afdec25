"""What was measured of pocket when it was released: the results that stand in its model card."""

import json
from functools import cache
from typing import Any

from workbench.model.checkpoints.bundled import embedded_folder


@cache
def results() -> dict[str, Any]:
    """The evaluation of pocket at its release, as `python -m workbench.pocket.eval` writes it.

    "causes" has, by family of problems, what the answer depends on.

    >>> results()["causes"]["addition"]["final_sees"]["no analysis"]["n"]
    300
    """
    return json.loads((embedded_folder() / "results.json").read_text("utf-8"))
