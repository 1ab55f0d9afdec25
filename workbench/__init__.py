"""A workbench for seeing how gpt-oss thinks.

    import workbench as wb
    trace = wb.trace("Mod 10: a=3, b=a+4, c=b*2. Find c.")   # thinks, answers, records
    trace.text(channel="analysis")                           # the chain of thought
    wb.pattern(trace, layer=1, head=2)                       # any attention pattern, exactly

Importing this package is cheap: torch is loaded when a model is, and traces open without it.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from workbench.errors import UnsupportedPlatform

try:
    import fcntl as _locks
except ImportError:  # Windows, and Python in a browser
    _locks = None
if _locks is None or sys.platform == "win32":
    raise UnsupportedPlatform(
        f"workbench runs on Linux and macOS, not on {sys.platform}: traces are read and written through folders that "
        f"are open and locked (fcntl), which this system does not have. On Windows, install it inside WSL 2: "
        f"https://learn.microsoft.com/windows/wsl/install"
    )

if TYPE_CHECKING:  # the names of `_HOME`, for editors and type checkers
    __version__: str
    from workbench import errors as errors
    from workbench import figures as figures
    from workbench import hooks as hooks
    from workbench import interop as interop
    from workbench import views as views
    from workbench.analysis import statistics as statistics
    from workbench.analysis.attention import pattern as pattern
    from workbench.analysis.attention import pattern_band as pattern_band
    from workbench.analysis.attention import pattern_view as pattern_view
    from workbench.analysis.heads import attention_ledger as attention_ledger
    from workbench.analysis.heads import attention_rollout as attention_rollout
    from workbench.analysis.heads import head_scores as head_scores
    from workbench.analysis.heads import receiver_heads as receiver_heads
    from workbench.analysis.heads import retrieval_scores as retrieval_scores
    from workbench.analysis.heads import sink_mass as sink_mass
    from workbench.analysis.heads import step_attention as step_attention
    from workbench.analysis.lens import forking_tokens as forking_tokens
    from workbench.analysis.lens import logit_lens as logit_lens
    from workbench.analysis.lens import settle_depth as settle_depth
    from workbench.analysis.probes import linear_probe as linear_probe
    from workbench.analysis.residual import massive_activations as massive_activations
    from workbench.analysis.residual import resid_cosine as resid_cosine
    from workbench.analysis.routing import coactivation as coactivation
    from workbench.analysis.routing import expert_load as expert_load
    from workbench.analysis.routing import fixed_token_routing as fixed_token_routing
    from workbench.analysis.routing import router_entropy as router_entropy
    from workbench.analysis.routing import router_margin as router_margin
    from workbench.analysis.routing import routing_drift as routing_drift
    from workbench.analysis.routing import specialisation as specialisation
    from workbench.analysis.routing import transitions as transitions
    from workbench.analysis.trajectories import resid_basis as resid_basis
    from workbench.analysis.trajectories import resid_trajectory as resid_trajectory
    from workbench.analysis.trajectories import step_cosine as step_cosine
    from workbench.api import estimate as estimate
    from workbench.api import resume as resume
    from workbench.api import trace as trace
    from workbench.circuits.experts import expert_writes as expert_writes
    from workbench.circuits.experts import router_tokens as router_tokens
    from workbench.circuits.heads import head_sinks as head_sinks
    from workbench.circuits.heads import ov_circuit as ov_circuit
    from workbench.circuits.heads import qk_circuit as qk_circuit
    from workbench.circuits.heads import qk_distance as qk_distance
    from workbench.conversation.chat import chat as chat
    from workbench.conversation.history import history as history
    from workbench.edits.library import ablate as ablate
    from workbench.edits.library import ban as ban
    from workbench.edits.library import force as force
    from workbench.edits.library import steer as steer
    from workbench.experiments.activation_patching import logit_gap as logit_gap
    from workbench.experiments.activation_patching import patch_sweep as patch_sweep
    from workbench.experiments.attention_knockout import attention_knockout as attention_knockout
    from workbench.experiments.attribution_patching import attribution_patching as attribution_patching
    from workbench.experiments.expert_knockout import expert_knockout as expert_knockout
    from workbench.experiments.faithfulness import faithfulness as faithfulness
    from workbench.experiments.forced_answers import belief as belief
    from workbench.experiments.logit_attribution import logit_attribution as logit_attribution
    from workbench.experiments.path_patching import path_patching as path_patching
    from workbench.experiments.resampling import resampling as resampling
    from workbench.experiments.steering import steering_effect as steering_effect
    from workbench.experiments.steering import steering_vector as steering_vector
    from workbench.experiments.suppression import suppression as suppression
    from workbench.experiments.tuned_lens import lens_kl as lens_kl
    from workbench.experiments.tuned_lens import load_lens as load_lens
    from workbench.experiments.tuned_lens import train_lens as train_lens
    from workbench.experiments.tuned_lens import tuned_lens as tuned_lens
    from workbench.model.checkpoints.synth import synth as synth
    from workbench.model.model import Model as Model
    from workbench.recording.doctor import doctor as doctor
    from workbench.traces import Trace as Trace
    from workbench.traces import load as load
    from workbench.traces.steps import steps as steps
    from workbench.traces.verification import check as check

_HOME = {  # public name -> the module that defines it; the imports above say the same, and a test compares them
    "trace": "workbench.api",
    "estimate": "workbench.api",
    "resume": "workbench.api",
    "Model": "workbench.model.model",
    "Trace": "workbench.traces",
    "load": "workbench.traces",
    "check": "workbench.traces.verification",
    "chat": "workbench.conversation.chat",
    "history": "workbench.conversation.history",
    "steps": "workbench.traces.steps",
    "pattern": "workbench.analysis.attention",
    "pattern_band": "workbench.analysis.attention",
    "pattern_view": "workbench.analysis.attention",
    "forking_tokens": "workbench.analysis.lens",
    "logit_lens": "workbench.analysis.lens",
    "massive_activations": "workbench.analysis.residual",
    "resid_cosine": "workbench.analysis.residual",
    "settle_depth": "workbench.analysis.lens",
    "attention_ledger": "workbench.analysis.heads",
    "attention_rollout": "workbench.analysis.heads",
    "head_scores": "workbench.analysis.heads",
    "receiver_heads": "workbench.analysis.heads",
    "retrieval_scores": "workbench.analysis.heads",
    "sink_mass": "workbench.analysis.heads",
    "step_attention": "workbench.analysis.heads",
    "linear_probe": "workbench.analysis.probes",
    "coactivation": "workbench.analysis.routing",
    "expert_load": "workbench.analysis.routing",
    "fixed_token_routing": "workbench.analysis.routing",
    "router_entropy": "workbench.analysis.routing",
    "router_margin": "workbench.analysis.routing",
    "routing_drift": "workbench.analysis.routing",
    "specialisation": "workbench.analysis.routing",
    "transitions": "workbench.analysis.routing",
    "resid_basis": "workbench.analysis.trajectories",
    "resid_trajectory": "workbench.analysis.trajectories",
    "step_cosine": "workbench.analysis.trajectories",
    "belief": "workbench.experiments.forced_answers",
    "logit_gap": "workbench.experiments.activation_patching",
    "patch_sweep": "workbench.experiments.activation_patching",
    "path_patching": "workbench.experiments.path_patching",
    "suppression": "workbench.experiments.suppression",
    "steering_vector": "workbench.experiments.steering",
    "steering_effect": "workbench.experiments.steering",
    "attribution_patching": "workbench.experiments.attribution_patching",
    "logit_attribution": "workbench.experiments.logit_attribution",
    "expert_knockout": "workbench.experiments.expert_knockout",
    "attention_knockout": "workbench.experiments.attention_knockout",
    "resampling": "workbench.experiments.resampling",
    "faithfulness": "workbench.experiments.faithfulness",
    "train_lens": "workbench.experiments.tuned_lens",
    "load_lens": "workbench.experiments.tuned_lens",
    "tuned_lens": "workbench.experiments.tuned_lens",
    "lens_kl": "workbench.experiments.tuned_lens",
    "expert_writes": "workbench.circuits.experts",
    "router_tokens": "workbench.circuits.experts",
    "head_sinks": "workbench.circuits.heads",
    "ov_circuit": "workbench.circuits.heads",
    "qk_circuit": "workbench.circuits.heads",
    "qk_distance": "workbench.circuits.heads",
    "ban": "workbench.edits.library",
    "force": "workbench.edits.library",
    "ablate": "workbench.edits.library",
    "steer": "workbench.edits.library",
    "synth": "workbench.model.checkpoints.synth",
    "doctor": "workbench.recording.doctor",
    "hooks": "workbench.hooks",
    "errors": "workbench.errors",
    "statistics": "workbench.analysis.statistics",
    "views": "workbench.views",
    "interop": "workbench.interop",
    "figures": "workbench.figures",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name == "__version__":  # stands in pyproject.toml and nowhere else
        from importlib.metadata import version

        return version("gpt-oss-workbench")
    if name not in _HOME:
        raise AttributeError(f"workbench has no {name!r}; its public names are: {', '.join(__all__)}")
    module = import_module(_HOME[name])
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return __all__
