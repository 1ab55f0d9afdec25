"""Which parts the model of a trace has: what a model does not have is neither shown nor recommended."""

from typing import Any


def is_gpt_oss(config: dict[str, Any]) -> bool:
    """Whether the config is one of gpt-oss; those of other models name their architecture."""
    return "architecture" not in config


def has_sinks(config: dict[str, Any]) -> bool:
    """Whether attention has learned sinks. Without them, the rows of a pattern sum to 1.

    >>> has_sinks({"n_layers": 24}), has_sinks({"architecture": "GPT2LMHeadModel", "sinks": False})
    (True, False)
    """
    return config.get("sinks") is not False


def has_router(config: dict[str, Any]) -> bool:
    """Whether some layers choose experts by a router.

    >>> has_router({"n_layers": 24}), has_router({"architecture": "GPT2LMHeadModel", "sinks": False})
    (True, False)
    """
    return is_gpt_oss(config) or "n_experts" in config


def identity_text(identity: str, config: dict[str, Any]) -> str:
    """The name of an identity as it is for this model: without sinks where it has none.

    >>> identity_text("pattern + sink = 1", {"architecture": "GPT2LMHeadModel", "sinks": False})
    'rows of the pattern sum to 1'
    """
    return identity if has_sinks(config) else _WITHOUT_SINKS.get(identity, identity)


_WITHOUT_SINKS = {
    "pattern + sink = 1": "rows of the pattern sum to 1",
    "pattern = softmax(q·k, sink)": "pattern = softmax(q·k)",
}
