"""Who wrote each token of a text: the prompt, the model, or a tool that the model called."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from workbench.errors import ArgumentError
from workbench.text import shown, visible
from workbench.traces.spans import CHANNELS, NO_TOOL, ROLES, Span, is_call

PROMPT, MODEL = "prompt", "model"
MAX_NAME = 256  # characters of the name of a tool
NOT_TOOLS = {*ROLES, *CHANNELS, *filter(None, NO_TOOL), "unparsed"}


class Stretch(NamedTuple):
    """Consecutive tokens with one writer: the positions `start:stop`.

    `who` is "prompt", "model" or the tool's name as the model calls it, such as "functions.calc".
    """

    start: int
    stop: int
    who: str


def prompt_then_model(prompt_length: int, count: int) -> list[Stretch]:
    """The stretches of an ordinary run: a prompt, and all other tokens written by the model.

    >>> prompt_then_model(4, 9)
    [Stretch(start=0, stop=4, who='prompt'), Stretch(start=4, stop=9, who='model')]
    """
    stretches = [Stretch(0, prompt_length, PROMPT), Stretch(prompt_length, count, MODEL)]
    return [stretch for stretch in stretches if stretch.start < stretch.stop]


def checked_written(value: Any, count: int, spans: Sequence[Span]) -> list[Stretch]:
    """The stretches [start, stop, who], which must cover `count` tokens in order, by writers that the text can have.

    The name of a tool must occur in the messages, as the recipient of a call or the author of a result. In a text that
    was not parsed as messages, any name without spaces may be one.

    Raises ArgumentError.
    """
    if not isinstance(value, list | tuple):
        raise ArgumentError(f"written must be a list of [start, stop, who], got {shown(value)}")
    if len(value) > count:
        raise ArgumentError(f"written has {len(value)} stretches, but there are only {count} tokens")
    stretches, end, tools = [], 0, _tools(spans)
    for index, item in enumerate(value):
        if not (isinstance(item, list | tuple) and len(item) == 3 and all(type(n) is int for n in item[:2])):
            raise ArgumentError(f"written[{index}] must be [start, stop, who], got {shown(item)}")
        stretch = Stretch(*item)
        if not (stretch.start == end < stretch.stop <= count):
            raise ArgumentError(
                f"written must cover the {count} tokens in order and without gaps, but written[{index}] has the "
                f"positions {shown(stretch.start)}:{shown(stretch.stop)} after a stretch that ends at {end}"
            )
        _check_writer(stretch.who, index, tools)
        if stretches and stretches[-1].who == stretch.who:
            raise ArgumentError(
                f"written[{index - 1}] and written[{index}] are both by {shown(stretch.who)}: join them into one"
            )
        stretches.append(stretch)
        end = stretch.stop
    if end != count:
        raise ArgumentError(f"written must cover all {count} tokens, but it ends at {end}")
    return stretches


def _tools(spans: Sequence[Span]) -> set[str] | None:
    """The tools that the messages name; None if the text was not parsed as messages, at least in part."""
    if not spans or any(span.role == "unparsed" for span in spans):
        return None
    called = {span.recipient for span in spans if is_call(span) and span.recipient}
    return called | {span.author for span in spans if span.role == "tool" and span.author}


def _check_writer(who: Any, index: int, tools: set[str] | None) -> None:
    if who in (PROMPT, MODEL):
        return
    is_name = type(who) is str and 0 < len(who) <= MAX_NAME and who.isprintable() and " " not in who
    if is_name and who not in NOT_TOOLS and (tools is None or who in tools):
        return
    listed = f" ({visible(', '.join(sorted(tools)[:20]))})" if tools else ""
    raise ArgumentError(
        f'the writer of written[{index}] must be "prompt", "model" or the name of a tool that the messages '
        f"call{listed}, got {shown(who)}"
    )


def prompt_length(written: Sequence[Stretch]) -> int:
    """The number of tokens before anyone else than the prompt wrote."""
    return written[0].stop if written and written[0].who == PROMPT else 0


def put_in(written: Sequence[Stretch], tokens: Sequence[int]) -> list[list[Any]]:
    """[position, token ids, who] of each stretch after the prompt that the model did not write.

    >>> put_in([Stretch(0, 2, "prompt"), Stretch(2, 3, "model"), Stretch(3, 5, "python")], [7, 8, 9, 10, 11])
    [[3, [10, 11], 'python']]
    """
    later = [stretch for stretch in written if stretch.start >= prompt_length(written) and stretch.who != MODEL]
    return [[stretch.start, list(tokens[stretch.start : stretch.stop]), stretch.who] for stretch in later]


def positions_by(written: Sequence[Stretch], who: str) -> np.ndarray:
    """The positions of the tokens that `who` wrote, as whole numbers, in order.

    >>> positions_by([Stretch(0, 2, "prompt"), Stretch(2, 4, "model"), Stretch(4, 5, "python")], "model")
    array([2, 3])

    Raises ArgumentError for a writer that this text does not have; "prompt" and "model" may have written nothing.
    """
    writers = dict.fromkeys([PROMPT, MODEL, *(stretch.who for stretch in written)])
    if not isinstance(who, str) or who not in writers:
        raise ArgumentError(f"who must be one of {visible(', '.join(writers))}, got {shown(who)}")
    ranges = [np.arange(stretch.start, stretch.stop) for stretch in written if stretch.who == who]
    return np.concatenate([np.arange(0), *ranges])


def token_counts(written: Sequence[Stretch]) -> dict[str, int]:
    """How many tokens each writer wrote, in the order of their first tokens; "prompt" and "model" first, perhaps 0.

    >>> token_counts([Stretch(0, 2, "prompt"), Stretch(2, 5, "python"), Stretch(5, 6, "model")])
    {'prompt': 2, 'model': 1, 'python': 3}
    """
    counts = {PROMPT: 0, MODEL: 0}
    for start, stop, who in written:
        counts[who] = counts.get(who, 0) + stop - start
    return counts


def writer_of_each(written: Sequence[Stretch]) -> list[str]:
    """The writer of each token.

    >>> writer_of_each([Stretch(0, 2, "prompt"), Stretch(2, 3, "model")])
    ['prompt', 'prompt', 'model']
    """
    return [who for start, stop, who in written for _ in range(start, stop)]


def first_stretches(written: Sequence[Stretch], count: int) -> list[Stretch]:
    """The stretches of the first `count` tokens."""
    return [stretch._replace(stop=min(stretch.stop, count)) for stretch in written if stretch.start < count]
