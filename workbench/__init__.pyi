"""A workbench for seeing how gpt-oss thinks."""

from workbench import attention as attention
from workbench import circuits as circuits
from workbench import errors as errors
from workbench import figures as figures
from workbench import hooks as hooks
from workbench import interop as interop
from workbench import lens as lens
from workbench import patching as patching
from workbench import probes as probes
from workbench import reasoning as reasoning
from workbench import residual as residual
from workbench import routing as routing
from workbench import sae as sae
from workbench import statistics as statistics
from workbench import steering as steering
from workbench import views as views
from workbench.api import estimate as estimate
from workbench.api import resume as resume
from workbench.api import trace as trace
from workbench.conversation.chat import chat as chat
from workbench.conversation.history import history as history
from workbench.edits.library import ablate as ablate
from workbench.edits.library import ban as ban
from workbench.edits.library import force as force
from workbench.edits.library import patch as patch
from workbench.edits.library import steer as steer
from workbench.model.checkpoints.synth import synth as synth
from workbench.model.model import Model as Model
from workbench.model_check import verify_model as verify_model
from workbench.recording.doctor import doctor as doctor
from workbench.stores import Store as Store
from workbench.traces import Trace as Trace
from workbench.traces import load as load
from workbench.traces.steps import steps as steps
from workbench.traces.verification import verify as verify

__version__: str
__all__ = [
    "Model",
    "Store",
    "Trace",
    "ablate",
    "attention",
    "ban",
    "chat",
    "circuits",
    "doctor",
    "errors",
    "estimate",
    "figures",
    "force",
    "history",
    "hooks",
    "interop",
    "lens",
    "load",
    "patch",
    "patching",
    "probes",
    "reasoning",
    "residual",
    "resume",
    "routing",
    "sae",
    "statistics",
    "steer",
    "steering",
    "steps",
    "synth",
    "trace",
    "verify",
    "verify_model",
    "views",
]
