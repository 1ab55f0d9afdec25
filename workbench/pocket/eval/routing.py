"""Which experts are used for what, and how much attention goes to the sinks, over held-out conversations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench.pocket.eval.accuracy import problems
from workbench.pocket.eval.writing import alike
from workbench.pocket.families import CHAINS
from workbench.pocket.families.people import COLORS, NAMES
from workbench.pocket.rendering import render
from workbench.pocket.vocabulary import SPECIALS, pieces
from workbench.runner.gpt_oss import forward
from workbench.runner.model import Model
from workbench.runner.taps import Recorder

DEAD = 0.05  # of an even share


def token_class(piece: str) -> str:
    """
    >>> [token_class(piece) for piece in ("<|end|>", "7", " Kay", "b", "+", ",", " drop")]
    ['special', 'digit', 'name', 'letter', 'sign', 'mark', 'word']
    """
    word = piece.strip()
    if piece in SPECIALS:
        return "special"
    if word.isdigit():
        return "digit"
    if word in NAMES or word in COLORS:
        return "name"
    if len(word) == 1 and word.isalpha():
        return "letter"
    if word and word in "+-*=":
        return "sign"
    return "word" if word.isalpha() else "mark"


@torch.inference_mode()
def routing(model: Model, n: int, shuffles: int = 20) -> dict[str, Any]:
    """Load by layer, and the information that the first expert has about family, channel and token class.

    Normalised by the entropy of what is told: 1 would be certainty. Each with its null, the mean over shuffles; for
    "given class" labels are shuffled among tokens of one class.
    """
    chosen, sinks, labels = _seen(model, n)
    c = model.config
    rng = np.random.default_rng(0)
    layers = []
    for layer in range(c.n_layers):
        load = np.bincount(chosen[layer].ravel(), minlength=c.n_experts) / chosen[layer].size * c.n_experts
        first = chosen[layer][:, 0]
        known: dict[str, Any] = {}
        for name in ("family", "channel", "token class"):
            null = [information(first, rng.permutation(labels[name])) for _ in range(shuffles)]
            known[name] = {"nmi": round(information(first, labels[name]), 4), "null": round(float(np.mean(null)), 4)}
        given = labels["token class"]
        null = [information(first, shuffled(labels["family"], given, rng), given) for _ in range(shuffles)]
        known["family given token class"] = {
            "nmi": round(information(first, labels["family"], given), 4),
            "null": round(float(np.mean(null)), 4),
        }
        layers.append(
            {
                "load_min": round(float(load.min()), 3),
                "load_max": round(float(load.max()), 3),
                "dead": int((load < DEAD).sum()),
                "entropy": round(_entropy(load / load.sum()) / float(np.log(c.n_experts)), 4),
                "knows": known,
            }
        )
    mean, most = np.mean(sinks, -1), np.max(sinks, -1)
    return {
        "tokens": chosen.shape[1],
        "layers": layers,
        "sink_mean": mean.round(4).tolist(),
        "sink_max": most.round(4).tolist(),
        "heads_with_5_percent_somewhere": round(float((most >= 0.05).mean()), 3),
        "heads_with_5_percent_on_average": round(float((mean >= 0.05).mean()), 3),
    }


def _seen(model: Model, n: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Choices (layer token choice), sink mass (layer head token), and labels by name (token)."""
    c = model.config
    asked = [(p, e) for family in CHAINS for p in problems(family, n) for e in ("low", "high")]
    texts = [render(p, effort).ids for p, effort in asked]
    experts = [f"blocks.{layer}.mlp.hook_expert_indices" for layer in range(c.n_layers)]
    sinks = [f"blocks.{layer}.attn.hook_sink" for layer in range(c.n_layers)]
    chosen, mass = [], []
    family, channel, kind = [], [], []
    for rows in alike(texts):
        seen = Recorder([*experts, *sinks])
        forward(c, model.weights, torch.tensor([list(texts[row]) for row in rows]), seen)
        chosen.append(torch.stack([seen[name].flatten(0, 1) for name in experts]).numpy())
        mass.append(torch.stack([seen[name].transpose(1, 2).flatten(0, 1).T for name in sinks]).numpy())
        for row in rows:
            said = pieces(texts[row])
            family += [asked[row][0].family] * len(said)
            channel += _channels(said)
            kind += map(token_class, said)
    labels = {"family": np.array(family), "channel": np.array(channel), "token class": np.array(kind)}
    return np.concatenate(chosen, 1), np.concatenate(mass, 2), labels


def _channels(said: Sequence[str]) -> list[str]:
    """The channel (or else the role) of the message that each token is in."""
    names: list[str] = []
    now, start = "system", 0
    for i, piece in enumerate(said):
        if piece == "<|start|>":
            names += [now] * (i - start)
            now, start = said[i + 1] if i + 1 < len(said) else now, i
        elif piece == "<|channel|>":
            now = said[i + 1]
    return names + [now] * (len(said) - start)


def information(x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None) -> float:
    """I(x; y | given) / H(y | given): 0 for independent, 1 where x decides y.

    >>> x = np.array([0, 0, 1, 1])
    >>> round(information(x, x), 6), round(information(x, np.array([0, 1, 0, 1])), 6)
    (1.0, 0.0)
    """
    strata = [np.ones(len(x), bool)] if given is None else [given == g for g in np.unique(given)]
    known = entropy = 0.0
    for s in strata:
        table = _table(x[s], y[s])
        joint = table / table.sum()
        a, b = _entropy(joint.sum(1)), _entropy(joint.sum(0))
        known += s.mean() * (a + b - _entropy(joint.ravel()))
        entropy += s.mean() * b
    return float(known / entropy) if entropy > 0 else 0.0


def shuffled(y: np.ndarray, within: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`y` in random order inside each stratum."""
    out = y.copy()
    for g in np.unique(within):
        out[within == g] = rng.permutation(y[within == g])
    return out


def _table(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    _, i = np.unique(x, return_inverse=True)
    _, j = np.unique(y, return_inverse=True)
    table = np.zeros((i.max() + 1, j.max() + 1))
    np.add.at(table, (i, j), 1)
    return table


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
