"""Statistics for experiments over prompts: intervals, tests, corrections and information measures."""

from workbench.analysis.statistics import Interval as Interval
from workbench.analysis.statistics import auroc as auroc
from workbench.analysis.statistics import benjamini_hochberg as benjamini_hochberg
from workbench.analysis.statistics import bootstrap as bootstrap
from workbench.analysis.statistics import entropy as entropy
from workbench.analysis.statistics import jensen_shannon as jensen_shannon
from workbench.analysis.statistics import mean as mean
from workbench.analysis.statistics import minimum_detectable_effect as minimum_detectable_effect
from workbench.analysis.statistics import mutual_information as mutual_information
from workbench.analysis.statistics import shuffled_mutual_information as shuffled_mutual_information
from workbench.analysis.statistics import sign_flip as sign_flip
from workbench.analysis.statistics import westfall_young as westfall_young
from workbench.analysis.statistics import wilson_interval as wilson_interval

__all__ = [
    "Interval",
    "auroc",
    "benjamini_hochberg",
    "bootstrap",
    "entropy",
    "jensen_shannon",
    "mean",
    "minimum_detectable_effect",
    "mutual_information",
    "shuffled_mutual_information",
    "sign_flip",
    "westfall_young",
    "wilson_interval",
]
