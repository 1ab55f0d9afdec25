"""Random conversations of several turns with tools, well-formed and malformed, as token ids."""

from dataclasses import dataclass
from random import Random

from tests.conversation.written import ids_of
from workbench.conversation.chat import Chat, chat
from workbench.conversation.render import render
from workbench.conversation.tokenizer import Tokenizer

WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CLOCK = {"name": "now", "description": "The time"}
TEXTS = ["", "It is 5.", "7+8=15, 2+3+1=6.", "naïve 日本 👩‍👧\n", '{"city": "Oslo"}', "a <|end> b", " leading", "json"]
NAMES = ["functions.get_weather", "functions.now", "get_weather", "python", "browser.search", "browser.open", "a/b:c-d"]
TYPES = [" <|constrain|>json", "<|constrain|>json", " <|constrain|> json", " json", " code", ""]
BROKEN = [  # malformed headers that models write, or might write
    "analysis<|message|>",
    "commentary to=functions.f<|message|>",
    "<|channel|>analysis",
    "<|channel|>analysis ",
    "<|channel|>analysis<|channel|>final<|message|>",
    "<|channel|>commentary to=functions.f<|channel|>commentary <|constrain|>json<|message|>",
    "<|channel|>analysis to=functions.f<|channel|>commentary json<|message|>",
    "<|channel|>commentary to=functions.f <|constrain|>json",
    "<|channel|>commentary to= functions.f<|message|>",
    "<|channel|>commentary functions.f json<|message|>",
    "<|channel|>commentaryto=functions.f code<|message|>",
    "<|channel|><|message|>",
    "<|message|>",
    "",
    " ",
    "assistant<|channel|>final<|message|>",
    "code<|channel|>analysis<|message|>",
    "<|channel|>final <|constrain|>json<|message|>",
    " to=python<|channel|>analysis code<|message|>",
    "<|constrain|>json<|message|>",
]
STARTS = ["<|start|>assistant", "<|start|>assistant", "<|start|>assistant", "", "commentary", "<|start|>", "assistant"]
ENDS = ["<|end|>", "<|end|>", "<|call|>", "<|return|>", ""]


@dataclass(frozen=True)
class Run:
    """A conversation: its chat, and its token ids in parts."""

    chat: Chat
    prompt: list[int]
    completions: list[list[int]]  # each after `<|start|>assistant`
    between: list[list[int]]  # between completions: results of tools, the next question, `<|start|>assistant`

    @property
    def ids(self) -> list[int]:
        return [
            *self.prompt,
            *(i for pair in zip(self.completions, [*self.between, []]) for part in pair for i in part),
        ]


def random_conversation(seed: int, tokenizer: Tokenizer) -> Run:
    """A random conversation of one to six completions; it is well-formed for every third seed."""
    rng = Random(seed)
    broken = bool(seed % 3)
    tools = rng.sample([WEATHER, CLOCK, "python", "browser"], rng.randrange(4))
    conversation = chat(
        "What is 12+30?",
        tools=tools,
        reasoning=rng.choice([None, "low", "medium", "high"]),
        developer=rng.choice([None, "Be brief."]),
    )
    completions, between = [], []
    for number in range(rng.randint(1, 6)):
        if number:
            between.append(ids_of(_results_or_question(rng), tokenizer))
        parts = [_message(rng, broken) for _ in range(rng.randint(1, 3))]
        starts = [rng.choice(STARTS) if broken else "<|start|>assistant" for _ in parts[1:]]
        pieces = [part for pair in zip(["", *starts], parts) for part in pair]
        # piece by piece, so that no token spans two pieces
        completions.append([i for piece in pieces for i in ids_of(piece, tokenizer)])
    return Run(conversation, list(render(conversation, tokenizer).ids), completions, between)


def _results_or_question(rng: Random) -> str:
    """The result of a tool or the next question or both, then the start of the assistant's next message."""
    text = ""
    if rng.random() < 0.6:
        name, address = rng.choice(NAMES[:2] + NAMES[3:6]), rng.choice(["", " to=assistant"])
        channel = rng.choice(["", "<|channel|>commentary", "<|channel|>analysis"])
        text = f"<|start|>{name}{address}{channel}<|message|>{rng.choice(TEXTS)}<|end|>"
    if not text or rng.random() < 0.3:
        text += f"<|start|>user<|message|>{rng.choice(TEXTS)}<|end|>"
    return text + "<|start|>assistant"


def _message(rng: Random, broken: bool) -> str:
    if broken and rng.random() < 0.5:
        return rng.choice(BROKEN) + rng.choice(TEXTS) + rng.choice(ENDS)
    if rng.random() < 0.5:
        return f"<|channel|>{rng.choice(['analysis', 'commentary', 'final'])}<|message|>{rng.choice(TEXTS)}<|end|>"
    name, channel = rng.choice(NAMES), rng.choice(["analysis", "commentary"])
    at_role, at_channel = rng.choice([(f" to={name}", ""), ("", f" to={name}")])
    return f"{at_role}<|channel|>{channel}{at_channel}{rng.choice(TYPES)}<|message|>{rng.choice(TEXTS)}<|call|>"


def mutated(rng: Random, tokenizer: Tokenizer, headers: list[list[int]]) -> list[int]:
    """A random header with one to four random edits: tokens deleted, doubled, moved or inserted."""
    header = list(rng.choice(headers))
    control = list(tokenizer.special.values())
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(header) + 1)
        change = rng.randrange(5)
        if change == 0 and header:
            del header[min(at, len(header) - 1)]
        elif change == 1 and header:
            header.insert(at, rng.choice(header))
        elif change == 2 and header:
            header.insert(at, header.pop(rng.randrange(len(header))))
        elif change == 3:
            header.insert(at, rng.choice(control))
        else:
            header[at:at] = rng.choice(headers)[: rng.randint(1, 3)]
    return header
