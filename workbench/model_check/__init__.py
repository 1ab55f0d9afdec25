"""Checks that this package reads and runs a user's own copy of gpt-oss right, against transformers, layer by layer."""

from workbench.model_check.line import Line
from workbench.model_check.report import ModelReport
from workbench.model_check.run import verify_model

__all__ = ["Line", "ModelReport", "verify_model"]
