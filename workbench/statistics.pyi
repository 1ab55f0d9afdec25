"""Statistics for experiments over prompts: intervals, tests, corrections and information measures."""

from workbench.analysis.statistics import Interval as Interval
from workbench.analysis.statistics import auroc as auroc
from workbench.analysis.statistics import benjamini_hochberg as benjamini_hochberg
from workbench.analysis.statistics import bootstrap_interval as bootstrap_interval
from workbench.analysis.statistics import entropy as entropy
from workbench.analysis.statistics import jensen_shannon as jensen_shannon
from workbench.analysis.statistics import mean_interval as mean_interval
from workbench.analysis.statistics import minimum_detectable_effect as minimum_detectable_effect
from workbench.analysis.statistics import mutual_information as mutual_information
from workbench.analysis.statistics import shuffled_mutual_information as shuffled_mutual_information
from workbench.analysis.statistics import sign_flip_test as sign_flip_test
from workbench.analysis.statistics import westfall_young as westfall_young
from workbench.analysis.statistics import wilson_interval as wilson_interval

__all__ = [
    "Interval",
    "auroc",
    "benjamini_hochberg",
    "bootstrap_interval",
    "entropy",
    "jensen_shannon",
    "mean_interval",
    "minimum_detectable_effect",
    "mutual_information",
    "shuffled_mutual_information",
    "sign_flip_test",
    "westfall_young",
    "wilson_interval",
]
