"""Which runs are about the same problem, so that a method fitted on one run is not tested on another of the same."""

from workbench.traces import Trace


def problem(trace: Trace) -> tuple[int, ...]:
    """The token ids of the user's messages, which identify the problem; the whole prompt if there are none.

    The reasoning effort is not part of it.

    >>> short, long = (wb.trace("What is 12+30?", max_tokens=n) for n in (2, 4))
    >>> problem(short) == problem(long) != problem(wb.trace("What is 12+31?", max_tokens=2))
    True
    """
    user_tokens = [n for span in trace.spans if span.role == "user" for n in trace.tokens[span.content]]
    return tuple(user_tokens or trace.tokens[: trace.prompt_length])
