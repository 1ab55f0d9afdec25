"""Views: from a trace to what a reader sees, in Jupyter and as a page. They know no model and no torch."""

from workbench.views.attention import heads as heads
from workbench.views.edges import steps as steps
from workbench.views.experts import routing as routing
from workbench.views.layers import lens as lens
from workbench.views.pairing import compare as compare
from workbench.views.parameters import weights as weights
from workbench.views.sheet import score_sheet as score_sheet
from workbench.views.transcript import tokens as tokens

__all__ = ["compare", "heads", "lens", "routing", "score_sheet", "steps", "tokens", "weights"]
