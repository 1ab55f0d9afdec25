"""Problems as harmony conversations: the prompt, the target text, and the tokens of each step."""

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate

from workbench.errors import PromptError
from workbench.pocket.problems import Problem, Step
from workbench.pocket.vocabulary import encode, str_tokens

EFFORTS = ("low", "medium", "high")
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"  # the headers of the model's messages

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
    """One conversation as token ids, for training."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]  # whether the loss includes the token
    steps: tuple[slice, ...]  # the tokens of each step; empty except at high effort


def prompt(problem: Problem, effort: str) -> str:
    """The prompt of a problem, up to and including `<|start|>assistant`.

    >>> from random import Random
    >>> from workbench.pocket.families import make
    >>> prompt(make("addition", Random(3), length=2), "low")
    '<|start|>system<|message|>Reasoning: low<|end|><|start|>user<|message|>What is 49+36?<|end|><|start|>assistant'
    """
    if effort not in EFFORTS:
        raise PromptError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}")
    tools = "<|start|>developer<|message|>Tools: functions.calc<|end|>" if problem.facts.has_calculator else ""
    system = f"<|start|>system<|message|>Reasoning: {effort}<|end|>"
    return f"{system}{tools}<|start|>user<|message|>{problem.question}<|end|><|start|>assistant"


def analysis(problem: Problem, effort: str) -> str:
    """The chain of thought at an effort; empty at low effort."""
    return {"low": "", "medium": problem.brief, "high": problem.analysis}[effort]


def thought(text: str) -> str:
    """An analysis message, and the start of the next message.

    >>> thought("7+8=15.")
    '<|channel|>analysis<|message|>7+8=15.<|end|><|start|>assistant'
    """
    return f"{ANALYSIS}{text}<|end|><|start|>assistant"


def call(problem: Problem) -> str:
    """The tool call of the calculator, in harmony."""
    return f'<|channel|>commentary to=functions.calc <|constrain|>json<|message|>{{"x": "{problem.call}"}}<|call|>'


def result(problem: Problem) -> str:
    """The calculator's reply, and the start of the model's next message."""
    reply = f"<|start|>functions.calc to=assistant<|channel|>commentary<|message|>{problem.result}<|end|>"
    return reply + "<|start|>assistant"


def final(problem: Problem) -> str:
    """The final message."""
    return f"{FINAL}It is {problem.answer}.<|return|>"


def call_in(text: str) -> str | None:
    """The expression of the call that a generated text ends with; None if it does not end with one.

    After it, `result` continues the conversation: with another result if the problem is `replied`.

    >>> call_in('<|channel|>commentary to=functions.calc <|constrain|>json<|message|>{"x": "5*2"}<|call|>')
    '5*2'
    """
    found = re.search(r'to=functions\.calc <\|constrain\|>json<\|message\|>\{"x": "([^"]*)"\}<\|call\|>$', text)
    return found[1] if found else None


def answer_in(text: str) -> str | None:
    """The answer in a generated text; None if there is none in the trained form.

    >>> answer_in("<|channel|>final<|message|>It is 385.<|return|>")
    '385'
    """
    _, _, rest = text.partition(f"{FINAL}It is ")
    answer, end, _ = rest.partition(".<|return|>")
    return answer if end else None


def render(problem: Problem, effort: str) -> Rendered:
    """The whole conversation as token ids, with the tokens that training supervises.

    Not supervised: the wrong part of a wrong step, and the comma after it if it is not corrected, so that the model
    learns neither to make mistakes nor to leave them uncorrected; the end of the longest analyses, which would teach a
    maximal number of steps. Supervised: a correction, and the steps that follow from an uncorrected wrong step.

    >>> from random import Random
    >>> from workbench.pocket.families import make
    >>> from workbench.pocket.vocabulary import str_tokens
    >>> rendered = render(make("addition", Random(3), length=2), "high")
    >>> ["".join(str_tokens(rendered.ids[step])) for step in rendered.steps]
    ['9+6=15', '4+3+1=8']
    """
    prompt_text, chain = prompt(problem, effort), analysis(problem, effort)
    analysis_message = thought(chain) if chain else ""
    if problem.call:
        parts = [(prompt_text, False), (analysis_message + call(problem), True)]
        parts += [(result(problem), False), (final(problem), True)]
    else:
        parts = [(prompt_text, False), (analysis_message + final(problem), True)]
    ids: list[int] = []
    supervised: list[bool] = []
    for text, is_target in parts:
        tokens = encode(text)
        ids += tokens
        supervised += [is_target] * len(tokens)
    if effort != "high":
        return Rendered(tuple(ids), tuple(supervised), ())
    begin = len(prompt_text) + len(ANALYSIS)
    stops = list(accumulate(map(len, str_tokens(ids))))
    step_slices = []
    for start, stop, step in _character_spans(problem.steps, begin):
        step_slices.append(_token_slice(start, stop, stops))
        if step.slip_from is not None:
            wrong = _token_slice(start + step.slip_from, stop, stops)
            until = wrong.stop + (not (problem.slip and problem.slip.corrected))
            supervised[wrong.start : until] = [False] * (until - wrong.start)
    if problem.length == problem.facts.longest:
        supervised[step_slices[-1].stop] = False
    return Rendered(tuple(ids), tuple(supervised), tuple(step_slices))


def _character_spans(steps: tuple[Step, ...], begin: int) -> list[tuple[int, int, Step]]:
    """The start and end character of each step of an analysis that begins at character `begin`."""
    spans = []
    for step in steps:
        spans.append((begin, begin + len(step.text), step))
        begin += len(step.text) + len(step.stop) + 1
    return spans


def _token_slice(start: int, stop: int, stops: list[int]) -> slice:
    """The tokens that contain the characters start:stop; token i ends before character `stops[i]`."""
    return slice(bisect_right(stops, start), bisect_left(stops, stop) + 1)
