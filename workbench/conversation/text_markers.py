"""Whether a chat template places every text of a chat unchanged, in order and once.

A text is looked for by its place and not by its words: "1" occurs anywhere. The chat is rendered a second time with a
marker before and after each text, which shows where the template places it. The rendered text must be the same as that
one without its markers. So a template that cuts, trims, escapes, replaces, repeats or reorders a text is found,
whatever the text is.
"""

import json
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from workbench.conversation.json_text import same_json
from workbench.errors import PromptError
from workbench.text import visible

LISTED = 5  # parts of a chat that an error names
SHOWN = 40  # characters of a text in an error
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class _ChatText:
    """A text of a chat; `what` names it in an error."""

    text: str
    what: str
    in_order: bool = False  # a message: after the one before
    optional: bool = False  # may be left out
    repeated: bool = False  # may occur more than once
    is_call: bool = False  # the arguments of a call, which may be written as JSON of another spacing


class TextMarkers:
    """The texts of a chat, with their markers, and where they are in the rendered text.

    A marker is made of characters that occur nowhere in the chat and the template: `[12|text]`, with private-use
    characters for the brackets, the digits and the bar.
    """

    def __init__(self, private: Iterator[str]):
        self._open, self._bar, self._close, *self._digits = (next(private) for _ in range(13))
        self._number = str.maketrans({digit: str(n) for n, digit in enumerate(self._digits)})
        self._texts: list[_ChatText] = []
        self._spans: list[tuple[int, int]] = []  # of each text in the rendered text, in order
        self._unescapes: Mapping[int, str | None] = {}

    @property
    def characters(self) -> list[str]:
        """The characters of the markers."""
        return [self._open, self._bar, self._close, *self._digits]

    def text(self, text: str | None, what: str) -> str | None:
        """A text that may be anywhere, with its marker."""
        return self._mark(_ChatText(text, what), text) if text else text

    def date(self, text: str | None, what: str) -> str | None:
        """A date, which may be repeated, with its marker."""
        return self._mark(_ChatText(text, what, repeated=True), text) if text else text

    def message(self, text: str, what: str, *, optional: bool) -> str:
        """The text of a message, with its marker."""
        return self._mark(_ChatText(text, what, in_order=True, optional=optional), text) if text else text

    def call(self, arguments: str, what: str) -> str:
        """A marker in the place of the arguments of a call."""
        return self._mark(_ChatText(arguments, what, in_order=True, is_call=True), "")

    def _mark(self, part: _ChatText, text: str) -> str:
        number = "".join(self._digits[int(digit)] for digit in str(len(self._texts)))
        self._texts.append(part)
        return f"{self._open}{number}{self._bar}{text}{self._close}"

    def locate(
        self, rendered: str, with_markers: str, escape: Callable[[str], str], unescapes: Mapping[int, str | None]
    ) -> None:
        """Finds the place of every text in the rendered text.

        `escape` hides control tokens, as in both renderings; `unescapes` is the table to undo it.

        Raises PromptError if a text is missing, repeated, changed or in another order.
        """
        inside = f"[^{self._open}{self._bar}{self._close}]*"
        marker = f"{self._open}([{''.join(self._digits)}]{{1,9}}){self._bar}({inside}){self._close}"
        self._unescapes = unescapes
        at = end = 0  # in the rendered text, and in that with markers
        seen: list[_ChatText] = []
        for match in re.finditer(marker, with_markers):
            number = int(match[1].translate(self._number))
            if number >= len(self._texts):
                continue  # a marker of the template itself
            part = self._texts[number]
            start, stop = match.span()
            if part.is_call and with_markers[max(end, start - 1) : start] == '"' == with_markers[stop : stop + 1]:
                start, stop = start - 1, stop + 1  # written as JSON
            between = with_markers[end:start]
            if not rendered.startswith(between, at):
                raise self._changed(part, rendered[at:])
            at += len(between)
            expected = "" if part.is_call else escape(part.text)
            if match[2] != expected:
                raise self._changed(part, match[2])
            length = self._call_length(rendered, at, part, escape) if part.is_call else len(expected)
            if not part.is_call and not rendered.startswith(expected, at):
                raise self._changed(part, rendered[at:])
            self._spans.append((at, at + length))
            at, end = at + length, stop
            seen.append(part)
        if rendered[at:] != with_markers[end:]:
            placed = set(map(id, seen))
            missing = [part for part in self._texts if id(part) not in placed and not part.optional]
            raise self._changed((missing or seen or self._texts)[0], rendered[at:])
        self._check_order(seen)

    def check_free(self, start: int, stop: int) -> None:
        """Raises PromptError if a control token at `start:stop` of the rendered text takes a part of a text."""
        before = bisect_left(self._spans, (stop,)) - 1
        if before >= 0 and self._spans[before][1] > start:
            raise PromptError(
                "a control token of the model's chat template takes a part of the text beside it, or of a message: "
                "tokenizer.json gives it the spaces around it, or changes the text. Pass token ids."
            )

    def _call_length(self, rendered: str, at: int, part: _ChatText, escape: Callable[[str], str]) -> int:
        """The length of the arguments of a call, as they are or as JSON of the same value."""
        if rendered.startswith(arguments := escape(part.text), at):
            return len(arguments)
        try:
            _, stop = _DECODER.raw_decode(rendered, at)
            written = rendered[at:stop].translate(self._unescapes)
            if same_json(written, part.text) or same_json(written, json.dumps(part.text)):
                return stop - at
        except (ValueError, RecursionError):
            pass
        raise self._changed(part, rendered[at:])

    def _changed(self, part: _ChatText, rendered: str) -> PromptError:
        shown = rendered[:SHOWN].translate(self._unescapes)
        original, shown = repr(visible(part.text[:SHOWN])), repr(visible(shown))
        ends = " Many templates trim: remove the white space at its ends." if part.text != part.text.strip() else ""
        return PromptError(
            f"the model's chat template changes {part.what}: {original} becomes {shown}.{ends} "
            "Set model.template to another template, or pass token ids."
        )

    def _check_order(self, seen: Sequence[_ChatText]) -> None:
        counts = Counter(map(id, seen))
        if missing := [part.what for part in self._texts if not counts[id(part)] and not part.optional]:
            raise no_place_for(missing)
        if repeated := [part.what for part in self._texts if counts[id(part)] > 1 and not part.repeated]:
            raise PromptError(
                f"the model's chat template repeats {_listed(repeated)}. "
                "Set model.template to another template, or pass token ids."
            )
        ordered = [id(part) for part in self._texts if part.in_order and counts[id(part)]]
        if ordered != [id(part) for part in seen if part.in_order]:
            raise PromptError(
                "the model's chat template changes the order of the messages. "
                "Set model.template to another template, or pass token ids."
            )


def no_place_for(parts: Sequence[str]) -> PromptError:
    """The error for parts of a chat that are not in the rendered text."""
    return PromptError(f"the model's chat template has no place for {_listed(parts)}. Leave it out, or pass token ids.")


def _listed(parts: Sequence[str]) -> str:
    more = f" and {len(parts) - LISTED} more" if len(parts) > LISTED else ""
    return ", ".join(map(visible, parts[:LISTED])) + more
