"""The table of the public names of workbench; the package, its topics and their stub files are made from it.

A topic is a module without code of its own: `workbench.routing.expert_load` is defined in
workbench/analysis/routing.py. A name is imported on first use, so `import workbench` stays cheap. `python
docs/stubs.py` writes the stub files (.pyi) from this table, for editors and type checkers.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

# Used daily: name -> the module that defines it.
TOP: dict[str, str] = {
    "trace": "workbench.api",
    "estimate": "workbench.api",
    "resume": "workbench.api",
    "Model": "workbench.model.model",
    "Trace": "workbench.traces",
    "load": "workbench.traces",
    "Store": "workbench.stores",
    "verify": "workbench.traces.verification",
    "chat": "workbench.conversation.chat",
    "history": "workbench.conversation.history",
    "steps": "workbench.traces.steps",
    "ablate": "workbench.edits.library",
    "ban": "workbench.edits.library",
    "force": "workbench.edits.library",
    "patch": "workbench.edits.library",
    "steer": "workbench.edits.library",
    "synth": "workbench.model.checkpoints.synth",
    "doctor": "workbench.recording.doctor",
    "verify_model": "workbench.model_check",
}

# Topic -> name -> the module that defines it.
TOPICS: dict[str, dict[str, str]] = {
    "attention": {
        "pattern": "workbench.analysis.attention",
        "pattern_band": "workbench.analysis.attention",
        "pattern_pooled": "workbench.analysis.attention",
        "breakdown": "workbench.analysis.heads",
        "rollout": "workbench.analysis.heads",
        "head_scores": "workbench.analysis.heads",
        "receiver_heads": "workbench.analysis.heads",
        "retrieval_scores": "workbench.analysis.heads",
        "sink_mass": "workbench.analysis.heads",
        "step_attention": "workbench.analysis.heads",
    },
    "routing": {
        "expert_load": "workbench.analysis.routing",
        "expert_coactivation": "workbench.analysis.routing",
        "expert_specialization": "workbench.analysis.routing",
        "expert_transitions": "workbench.analysis.routing",
        "fixed_token_routing": "workbench.analysis.routing",
        "router_entropy": "workbench.analysis.routing",
        "router_margin": "workbench.analysis.routing",
        "routing_drift": "workbench.analysis.routing",
    },
    "residual": {
        "logit_attribution": "workbench.experiments.logit_attribution",
        "massive_activations": "workbench.analysis.residual",
        "resid_basis": "workbench.analysis.trajectories",
        "resid_cosine": "workbench.analysis.residual",
        "resid_trajectory": "workbench.analysis.trajectories",
        "step_cosine": "workbench.analysis.trajectories",
    },
    "lens": {
        "logit_lens": "workbench.analysis.lens",
        "prediction_depth": "workbench.analysis.lens",
        "tuned_lens": "workbench.experiments.tuned_lens",
        "train_tuned_lens": "workbench.experiments.tuned_lens",
        "load_tuned_lens": "workbench.experiments.tuned_lens",
        "lens_kl": "workbench.experiments.tuned_lens",
    },
    "probes": {
        "linear_probe": "workbench.analysis.probes",
    },
    "steering": {
        "steering_effect": "workbench.experiments.steering",
        "steering_vector": "workbench.experiments.steering",
    },
    "patching": {
        "activation_patching": "workbench.experiments.activation_patching",
        "attention_knockout": "workbench.experiments.attention_knockout",
        "attribution_patching": "workbench.experiments.attribution_patching",
        "expert_knockout": "workbench.experiments.expert_knockout",
        "head_knockout": "workbench.experiments.head_knockout",
        "logit_diff": "workbench.experiments.activation_patching",
        "path_patching": "workbench.experiments.path_patching",
    },
    "reasoning": {
        "faithfulness": "workbench.experiments.faithfulness",
        "forced_answer": "workbench.experiments.forced_answers",
        "forking_tokens": "workbench.analysis.lens",
        "resampling": "workbench.experiments.resampling",
        "score_attribution": "workbench.pocket.attribution",
        "suppression": "workbench.experiments.suppression",
    },
    "sae": {
        "SAE": "workbench.experiments.sae",
        "features": "workbench.experiments.sae",
        "identity": "workbench.experiments.sae",
        "load_sae": "workbench.interop.sae_formats",
        "reconstruction": "workbench.experiments.sae",
        "site_of": "workbench.experiments.sae_site",
        "splice_cost": "workbench.experiments.sae",
    },
    "circuits": {
        "expert_logit_effects": "workbench.circuits.experts",
        "ov_circuit": "workbench.circuits.heads",
        "qk_circuit": "workbench.circuits.heads",
        "qk_distance": "workbench.circuits.heads",
        "router_tokens": "workbench.circuits.experts",
        "sink_logits": "workbench.circuits.heads",
    },
    "statistics": {
        "Interval": "workbench.analysis.statistics",
        "auroc": "workbench.analysis.statistics",
        "benjamini_hochberg": "workbench.analysis.statistics",
        "bootstrap_interval": "workbench.analysis.statistics",
        "entropy": "workbench.analysis.statistics",
        "jensen_shannon": "workbench.analysis.statistics",
        "mean_interval": "workbench.analysis.statistics",
        "minimum_detectable_effect": "workbench.analysis.statistics",
        "mutual_information": "workbench.analysis.statistics",
        "shuffled_mutual_information": "workbench.analysis.statistics",
        "sign_flip_test": "workbench.analysis.statistics",
        "westfall_young": "workbench.analysis.statistics",
        "wilson_interval": "workbench.analysis.statistics",
    },
}

# Topics that are packages or modules with code of their own.
MODULES: tuple[str, ...] = ("views", "figures", "interop", "hooks", "errors")


def homes(module: str) -> dict[str, str]:
    """name -> defining module, for the public names of "workbench" or of a topic.

    >>> homes("workbench.probes")
    {'linear_probe': 'workbench.analysis.probes'}
    """
    if module == "workbench":
        topics = {name: f"workbench.{name}" for name in (*TOPICS, *MODULES)}
        return {**TOP, **topics}
    return TOPICS[module.removeprefix("workbench.")]


def lazy_names(
    module: str, table: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` for a module: each name is imported on first use.

    `table` maps each name to its defining module, by default as in `homes`. A name whose home is the submodule of that
    name is the submodule itself.
    """
    table = homes(module) if table is None else table
    names = sorted(table)

    def get(name: str) -> Any:
        if name not in table:
            raise AttributeError(f"{module} has no {name!r}; {_hint(name, names)}")
        defined_in = import_module(table[name])
        return defined_in if table[name] == f"{module}.{name}" else getattr(defined_in, name)

    return get, lambda: names, names


def _hint(name: str, names: list[str]) -> str:
    """Where a name is if another module has it; otherwise the names of this module, nearest first."""
    topic = next((topic for topic, table in TOPICS.items() if name in table), None)
    if topic is not None:
        return f"it is in wb.{topic}: wb.{topic}.{name}"
    if name in TOP:
        return f"it is wb.{name}"
    from difflib import get_close_matches  # here, because it takes a third of the time of `import workbench`

    near = get_close_matches(name, names)
    return f"its public names are: {', '.join([*near, *(other for other in names if other not in near)])}"
