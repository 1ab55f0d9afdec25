"""Sparse autoencoders: load those that others trained, see their features, splice them into the model."""

from workbench.experiments.sae import SAE as SAE
from workbench.experiments.sae import features as features
from workbench.experiments.sae import identity as identity
from workbench.experiments.sae import reconstruction as reconstruction
from workbench.experiments.sae import splice_cost as splice_cost
from workbench.experiments.sae_site import site_of as site_of
from workbench.interop.sae_formats import load_sae as load_sae

__all__ = [
    "SAE",
    "features",
    "identity",
    "load_sae",
    "reconstruction",
    "site_of",
    "splice_cost",
]
