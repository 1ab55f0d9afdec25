"""The shapes of the published models, and the size of a trace of them without their weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import Any, cast

from workbench.checks import check_whole
from workbench.conversation.chat import Chat
from workbench.conversation.render import render
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import ModelNotFound, PromptError
from workbench.model import prompts
from workbench.model.checkpoints.hub import snapshot_folder
from workbench.model.checkpoints.validate import default_dtype
from workbench.model.config import Config
from workbench.recording.budget import Estimate
from workbench.recording.plan import plan
from workbench.recording.source import ModelSource

PUBLISHED = {
    "openai/gpt-oss-20b": Config(),
    "openai/gpt-oss-120b": Config(n_layers=36, n_experts=128, layer_types=Config().layer_types[:2] * 18),
}
BYTES_PER_TOKEN = 3.5  # of English and formulas in gpt-oss's vocabulary, rounded down: more tokens rather than fewer
SYSTEM_TOKENS = 70  # of the system message (who it is, dates, effort, channels) and the start of the answer
FRAME_TOKENS = 5  # of a message: its control tokens, role and channel


@dataclass(frozen=True)
class Unloaded:
    """What `ModelSource` needs of a Model to plan a recording: all but the weights."""

    name: str
    config: Config
    tokenizer: Tokenizer | None
    device: str = "cpu"
    rows_independent: bool = True

    @property
    def dtype(self) -> Any:
        return default_dtype(self.config, None)

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def config_dict(self) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self.config).items()}

    def active_edits(self) -> list[Any]:
        return []


class PlannedSource(ModelSource):
    """A source that can be planned for and not run; its identity has the length of a real one."""

    def identity(self) -> dict[str, Any]:
        digest = "0" * 64
        return {
            "name": self.name,
            "format": "hf-mxfp4",
            "weights_digest": digest,
            "tokenizer_digest": digest,
            "config": self.config,
        }


def estimate_published(name: str, prompt: Any, record: str | Sequence[str], max_tokens: int) -> Estimate:
    """The Estimate of a run of a published model that is not on this machine; `note` says how it was made.

    >>> estimate = estimate_published("openai/gpt-oss-20b", range(100), "attention", 900)
    >>> estimate.positions, round(estimate.bytes / 1e6)
    (1000, 231)
    """
    config, tokenizer = PUBLISHED[name], _tokenizer(name)
    parsed, max_tokens = prompts.parse(prompt), check_whole("max_tokens", max_tokens, 0)
    note = f"from the published shape of {name}; its weights were not loaded, and need memory besides"
    if isinstance(parsed, list):
        tokens = parsed
    elif tokenizer:
        tokens = list(render(parsed, tokenizer).ids)
    else:
        tokens = [0] * _approximate_length(parsed)
        note += (
            f"; its tokenizer is not here either, so the prompt was counted as {len(tokens)} tokens, one for "
            f"{BYTES_PER_TOKEN} bytes"
        )
    if not tokens or min(tokens) < 0 or max(tokens) >= config.d_vocab:
        raise PromptError(f"a prompt of {name} is at least one token id of 0..{config.d_vocab - 1}.")
    if len(tokens) + max_tokens > config.n_ctx:
        raise PromptError(
            f"{len(tokens)} prompt tokens and max_tokens={max_tokens} exceed the {config.n_ctx} positions of {name}."
        )
    source = PlannedSource(cast(Any, Unloaded(name, config, tokenizer)))
    return replace(plan(source, record, tokens, len(tokens) + max_tokens, None).estimate, note=note)


def _tokenizer(name: str) -> Tokenizer | None:
    """The model's tokenizer, if the Hugging Face cache has it without the weights."""
    try:
        folder = snapshot_folder(name)
        return Tokenizer.from_folder(folder) if (folder / "tokenizer.json").is_file() else None
    except ModelNotFound:
        return None


def _approximate_length(chat: Chat) -> int:
    """About how many tokens of gpt-oss a chat has: the bytes of its texts, and the frame of each message."""
    texts = [chat.system, chat.developer, *(text for each in chat.messages for text in (each.content, each.thinking))]
    texts = [text for text in texts if text]
    tools = len(repr(chat.tools).encode()) if chat.tools else 0
    n_bytes = tools + sum(len(text.encode(errors="replace")) for text in texts)
    return SYSTEM_TOKENS + FRAME_TOKENS * len(texts) + ceil(n_bytes / BYTES_PER_TOKEN)
