"""How many forward passes a method needs, counted while it runs."""

from collections.abc import Callable

import torch
from torch import Tensor

import workbench as wb


def count_passes(model: wb.Model, run: Callable[[], object], n_tokens: int) -> float:
    """The computation of `run()` as a number of forward passes over a text of `n_tokens` tokens.

    Every layer at every position of every row of a batch counts, so a pass over half of the text is half a pass, and
    the tokens of a generation count as they do in a text. Backward passes do not count.

    >>> model = wb.Model("pocket")
    >>> count_passes(model, lambda: model.forward(torch.tensor([[1, 2, 3, 4]] * 3)), n_tokens=4)
    3.0
    """
    n_cells = 0

    def count(resid_pre: Tensor) -> Tensor:
        nonlocal n_cells
        n_cells += resid_pre.shape[0] * resid_pre.shape[1]
        return resid_pre

    with model.edit("resid_pre", count):
        model.forward(torch.tensor([[0]]))  # an edit that never fires is an error, and `run` may need no pass
        n_cells = 0
        run()
    return n_cells / (model.config.n_layers * n_tokens)
