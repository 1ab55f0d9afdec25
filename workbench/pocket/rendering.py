"""Problems in harmony's form, token by token: what pocket is asked, what it should write, where each step stands."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate

from workbench.errors import PromptError
from workbench.pocket.problems import Problem, Step
from workbench.pocket.vocabulary import encode, pieces

EFFORTS = ("low", "medium", "high")
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"  # how a message of the model begins

TEMPLATE = """\
{%- set eff = reasoning_effort if reasoning_effort is defined and reasoning_effort else "high" -%}
<|start|>system<|message|>Reasoning: {{ eff }}<|end|>
{%- if tools %}<|start|>developer<|message|>Tools: functions.calc<|end|>{% endif -%}
{%- for m in messages -%}
{%- if m.role == "user" -%}<|start|>user<|message|>{{ m.content }}<|end|>
{%- elif m.role == "assistant" -%}
{%- if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif -%}
{%- if m.tool_calls and tools and m.tool_calls[0].function.name == "calc" -%}
<|start|>assistant<|channel|>commentary to=functions.calc <|constrain|>json<|message|>
{{- m.tool_calls[0].function.arguments | tojson }}<|call|>
{%- else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif -%}
{%- elif m.role == "tool" -%}<|start|>functions.calc to=assistant<|channel|>commentary<|message|>{{ m.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}"""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as token ids; `supervised` says which of them the model should have written.

    `steps` are the tokens of each step, as slices of `ids`; none but at high effort.
    """

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    steps: tuple[slice, ...]


def prompt(problem: Problem, effort: str) -> str:
    """What the model is given, up to `<|start|>assistant`.

    >>> from random import Random
    >>> from workbench.pocket.families import make
    >>> prompt(make("addition", Random(3), length=2), "low")
    '<|start|>system<|message|>Reasoning: low<|end|><|start|>user<|message|>What is 49+36?<|end|><|start|>assistant'
    """
    if effort not in EFFORTS:
        raise PromptError(f"there is no effort {effort!r}: choose one of {', '.join(EFFORTS)}")
    tools = "<|start|>developer<|message|>Tools: functions.calc<|end|>" if problem.call else ""
    system = f"<|start|>system<|message|>Reasoning: {effort}<|end|>"
    return f"{system}{tools}<|start|>user<|message|>{problem.question}<|end|><|start|>assistant"


def analysis(problem: Problem, effort: str) -> str:
    """The chain of thought of an effort; none at low."""
    return {"low": "", "medium": problem.brief, "high": problem.analysis}[effort]


def thought(text: str) -> str:
    """An analysis message, and the beginning of the next one.

    >>> thought("7+8=15.")
    '<|channel|>analysis<|message|>7+8=15.<|end|><|start|>assistant'
    """
    return f"{ANALYSIS}{text}<|end|><|start|>assistant"


def call(problem: Problem) -> str:
    """The call of the calculator, in harmony."""
    return f'<|channel|>commentary to=functions.calc <|constrain|>json<|message|>{{"x": "{problem.call}"}}<|call|>'


def result(problem: Problem) -> str:
    """What the calculator says, and the beginning of the model's next message."""
    said = f"<|start|>functions.calc to=assistant<|channel|>commentary<|message|>{problem.answer}<|end|>"
    return said + "<|start|>assistant"


def final(problem: Problem) -> str:
    """The final message."""
    return f"{FINAL}It is {problem.answer}.<|return|>"


def answer_in(text: str) -> str | None:
    """The answer that a model's text gives, None if it gives none in the form that was trained.

    >>> answer_in("<|channel|>final<|message|>It is 385.<|return|>")
    '385'
    """
    _, found, rest = text.partition(f"{FINAL}It is ")
    answer, found, _ = rest.partition(".<|return|>")
    return answer if found else None


def render(problem: Problem, effort: str) -> Rendered:
    """The whole conversation, as it is trained.

    What a wrong step has wrong is not supervised, for nobody should learn to write it, nor to go on from it as if it
    were right; that a correction follows is, and what follows from a wrong step once it has been passed over. Nor
    is the end of the longest analyses: it would teach that no more than so many steps can follow.

    >>> from random import Random
    >>> from workbench.pocket.families import make
    >>> from workbench.pocket.vocabulary import pieces
    >>> rendered = render(make("addition", Random(3), length=2), "high")
    >>> ["".join(pieces(rendered.ids[step])) for step in rendered.steps]
    ['9+6=15', '4+3+1=8']
    """
    asked, thinks = prompt(problem, effort), analysis(problem, effort)
    said = thought(thinks) if thinks else ""
    if problem.call:
        parts = [(asked, False), (said + call(problem), True), (result(problem), False), (final(problem), True)]
    else:
        parts = [(asked, False), (said + final(problem), True)]
    ids: list[int] = []
    supervised: list[bool] = []
    for text, ours in parts:
        tokens = encode(text)
        ids += tokens
        supervised += [ours] * len(tokens)
    if effort != "high":
        return Rendered(tuple(ids), tuple(supervised), ())
    begin = len(asked) + len(ANALYSIS)
    stops = list(accumulate(map(len, pieces(ids))))
    places = []
    for a, b, step in _places(problem.steps, begin):
        places.append(_tokens(a, b, stops))
        if step.slip_from is not None:
            wrong = _tokens(a + step.slip_from, b, stops)
            until = wrong.stop + (not (problem.slip and problem.slip.corrected))
            supervised[wrong.start : until] = [False] * (until - wrong.start)
    if problem.length == problem.facts.longest:
        supervised[places[-1].stop] = False
    return Rendered(tuple(ids), tuple(supervised), tuple(places))


def _places(steps: tuple[Step, ...], at: int) -> list[tuple[int, int, Step]]:
    """The characters of each step of an analysis that begins at character `at`."""
    places = []
    for step in steps:
        places.append((at, at + len(step.text), step))
        at += len(step.text) + len(step.stop) + 1
    return places


def _tokens(start: int, stop: int, stops: list[int]) -> slice:
    """The tokens that hold the characters start:stop, where token i ends after `stops[i]` of them."""
    return slice(bisect_right(stops, start), bisect_left(stops, stop) + 1)
