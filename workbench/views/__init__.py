"""Views: interactive displays of a trace, in Jupyter and as HTML pages. They need neither a model nor torch."""

from workbench.views.compare_view import compare as compare
from workbench.views.heads_view import heads as heads
from workbench.views.lens_view import lens as lens
from workbench.views.routing_view import routing as routing
from workbench.views.score_sheet_view import score_sheet as score_sheet
from workbench.views.steps_view import steps as steps
from workbench.views.summary_view import summary as summary
from workbench.views.tokens_view import tokens as tokens
from workbench.views.weights_view import weights as weights

__all__ = ["compare", "heads", "lens", "routing", "score_sheet", "steps", "summary", "tokens", "weights"]


def __dir__() -> list[str]:  # for completion: the views, not the modules that they are made of
    return __all__
