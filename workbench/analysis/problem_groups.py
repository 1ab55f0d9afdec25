"""When two runs are about the same problem: what was learned from one must not be tried on the other."""

from workbench.traces import Trace


def problem(trace: Trace) -> tuple[int, ...]:
    """The tokens of the user's messages, whatever effort was asked for; all of the prompt where there are none.

    >>> short, long = (wb.trace("What is 12+30?", max_tokens=n) for n in (2, 4))
    >>> problem(short) == problem(long) != problem(wb.trace("What is 12+31?", max_tokens=2))
    True
    """
    asked = [n for span in trace.spans if span.role == "user" for n in trace.tokens[span.content]]
    return tuple(asked or trace.tokens[: trace.prompt_length])
