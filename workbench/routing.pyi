"""Routing: which experts are chosen, how evenly, for what, and how the choice changes over a text."""

from workbench.analysis.routing import expert_coactivation as expert_coactivation
from workbench.analysis.routing import expert_load as expert_load
from workbench.analysis.routing import expert_specialization as expert_specialization
from workbench.analysis.routing import expert_transitions as expert_transitions
from workbench.analysis.routing import fixed_token_routing as fixed_token_routing
from workbench.analysis.routing import router_entropy as router_entropy
from workbench.analysis.routing import router_margin as router_margin
from workbench.analysis.routing import routing_drift as routing_drift

__all__ = [
    "expert_coactivation",
    "expert_load",
    "expert_specialization",
    "expert_transitions",
    "fixed_token_routing",
    "router_entropy",
    "router_margin",
    "routing_drift",
]
