"""Steps: the sentences of a chain of thought, as ranges of token positions. Needs only `.str_tokens` and `.spans`.

The same rules find the ends of steps in a 20b model's prose and in pocket's shorthand:

1. A sentence ends after `.`, `?` or `!` if white space or the end of the text follows (`3.14` is one number). It also
   ends after any other sentence terminator of Unicode (`。`, `।`, `؟`) and at every line break. It does not end after
   an abbreviation such as `e.g.` or after a list marker (`1.`), and after `...` only if a capital follows. `p.m.` and
   `etc.` end a sentence before a capital, `U.S.` before a word that begins sentences (`The`). A fenced block of code is
   one piece.
2. In shorthand, a clause is a step. A comma and a space outside brackets end a step if there is a computed clause of
   the same kind on both sides. There are four kinds: an equation with at most one word (`7+8=15, 2+3+1=6`), a clause of
   the same shape as its neighbor (`1 Jim to Kay, 2 Kay to Dee`), a clause that begins with the last word of its
   neighbor (`Jim to Kay, Kay to Dee`), and one word with its result (`drop 294, turn 429`). `1,000`, `f(x=1, y=2)` and
   "if x=1, we get" are not split.
3. A piece of fewer than ten characters is joined to the next piece, and the last piece to the one before. Exceptions
   are an equation, a word with its result, a clause by rule 2, and two or more words that end in their script's own
   full stop (`फिर दहाई।`), which, unlike `.`, is never part of a number or an abbreviation.

White space after a sentence belongs to the next sentence, as in the tokens (` So`). Line breaks belong to the line that
they end. If a step would end inside a token, it ends after that token.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal, Protocol
from unicodedata import east_asian_width

from workbench.checks import check_attributes, check_items
from workbench.errors import PromptError
from workbench.text import shown, visible
from workbench.traces.spans import Span, check_message_name, selected_turns

MIN_CHARACTERS = 10  # as in Thought Anchors (arXiv 2506.19143)
KIND_CHARACTERS = 2000  # of a step, that decide its kind
MAX_WAITING_SPACE = 20  # characters of white space around a short piece that waits for the next one

KINDS = (
    "problem_setup",
    "plan_generation",
    "fact_retrieval",
    "active_computation",
    "uncertainty_management",
    "result_consolidation",
    "self_checking",
    "final_answer_emission",
    "unknown",
)


class HasText(Protocol):
    """The part of a Trace that steps need."""

    @property
    def str_tokens(self) -> Sequence[str]: ...

    @property
    def spans(self) -> Sequence[Span]: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a chain of thought: the tokens `start:stop`, their text, and one of `KINDS`."""

    start: int
    stop: int
    text: str
    kind: str = "unknown"

    def __len__(self) -> int:
        """The number of tokens."""
        return self.stop - self.start

    def __repr__(self) -> str:
        return f"Step({self.start}:{self.stop} {visible(repr(self.text))} {self.kind})"


def steps(trace: HasText, channel: str = "analysis", *, turn: int | Literal["all"] = -1) -> list[Step]:
    """The sentences of the assistant's messages on a channel, in order; joined, their texts are the messages' text.

    `turn` selects one turn (0 is the first, -1 the last) or "all". The default gives the thoughts that led to the
    answer of this run. Tool calls and their results are not steps, whatever their channel.

    >>> from types import SimpleNamespace
    >>> characters = list("7+8=15, 2+3+1=6, 2+1=3.")
    >>> thought = Span(0, len(characters), 0, len(characters), "assistant", "analysis")
    >>> steps(SimpleNamespace(str_tokens=characters, spans=[thought]))
    [Step(0:7 '7+8=15,' active_computation), Step(7:16 ' 2+3+1=6,' active_computation), \
Step(16:23 ' 2+1=3.' active_computation)]

    A turn without messages on the channel has no steps. Raises NotRecorded if there is no such turn, ArgumentError if
    `channel` is neither a channel of harmony nor of a message.
    """
    check_attributes("steps", trace, "str_tokens", "spans")
    check_message_name("channel", channel, trace.spans)
    messages = [message for one in selected_turns(trace.spans, turn) for message in one.on(channel)]
    str_tokens = trace.str_tokens  # a property that may copy
    return [step for message in messages for step in _in_message(str_tokens, message)]


def segment_slices(trace: HasText, segments: Sequence[Step | slice] | None = None) -> list[slice]:
    """The positions of each segment, as slices within the trace. The default segments are the steps of the trace.

    >>> trace = wb.trace("What is 12+30?")
    >>> segment_slices(trace, [slice(-3, None)]) == [slice(len(trace) - 3, len(trace))]
    True

    Raises PromptError for a segment that is neither a Step nor a slice, has a stride, or is outside the text.
    """
    slices = []
    n = len(trace.str_tokens)
    for number, segment in enumerate(steps(trace) if segments is None else check_items("segments", segments, low=0)):
        if not isinstance(segment, Step | slice):
            raise PromptError(
                f"segments[{number}] must be a Step of wb.steps(…) or a slice of positions, got {shown(segment)}"
            )
        try:
            start, stop, stride = slice(segment.start, segment.stop, getattr(segment, "step", None)).indices(n)
        except (TypeError, ValueError) as error:
            raise PromptError(f"segments[{number}] is {segment!r}: {error}") from None
        if stride != 1 or start > stop or (segment.start or 0) > n:
            why = "has a stride" if stride != 1 else f"is outside the {n} positions"
            raise PromptError(
                f"segments[{number}], {segment!r}, {why}: give a range of positions, as slice(start, stop)"
            )
        slices.append(slice(start, stop))
    return slices


def find_step(steps: Sequence[Step], pos: int) -> Step | None:
    """The step that contains a position; None if it is between steps, in a header, or on another channel.

    >>> find_step([Step(2, 5, "I see."), Step(9, 11, "So 5.")], 9)
    Step(9:11 'So 5.' unknown)
    """
    number = bisect_right(steps, pos, key=lambda step: step.start) - 1
    return steps[number] if number >= 0 and pos < steps[number].stop else None


def _in_message(pieces: Sequence[str], span: Span) -> Iterator[Step]:
    """The steps of one message: its content, split at the ends of tokens."""
    texts = pieces[span.content]
    stops = list(accumulate(map(len, texts)))  # of each token, in characters
    cuts: dict[int, bool] = {}  # number of tokens before the cut -> whether it is between two clauses
    for at, clause in _ends("".join(texts)).items():
        token = next_token(stops, at)
        cuts[token] = cuts.get(token, True) and clause
    cuts.pop(len(texts), None)
    edges = [0, *sorted(cuts), len(texts)] if texts else []
    first = span.content_start
    for a, b in _merged([(a, b) for a, b in pairwise(edges)], texts, cuts):
        text = "".join(texts[a:b])
        yield Step(first + a, first + b, text, kind(text))


def next_token(stops: Sequence[int], at: int) -> int:
    """The number of tokens that cover the first `at` characters, where token i ends after `stops[i]` characters.

    >>> next_token([2, 2, 5], 2), next_token([2, 2, 5], 3)
    (1, 3)
    """
    return bisect_right(stops, at - 1) + 1


def _merged(pieces: list[tuple[int, int]], texts: Sequence[str], cuts: dict[int, bool]) -> list[tuple[int, int]]:
    """Short pieces joined to the next one, the last to the one before; a clause or an equation may be short."""
    merged: list[tuple[int, int]] = []
    begin: int | None = None  # of short pieces that wait for the next one
    waiting = ""  # their text; joining it anew for each piece would take quadratic time
    for a, b in pieces:
        start = a if begin is None else begin
        text = ("" if begin is None else waiting) + "".join(texts[a:b])
        clause = cuts.get(a, False) or cuts.get(b, False)
        if _width(text.strip()) >= MIN_CHARACTERS or (
            text.strip() and (clause or _worked(text) or _unmistakable(text))
        ):
            merged.append((start, b))
            begin = None
        else:
            begin, waiting = start, _with_little_space(text)
    if begin is not None:
        if merged:
            begin = merged.pop()[0]
        merged.append((begin, pieces[-1][1]))
    return merged


def _with_little_space(text: str) -> str:
    """The text with at most 20 characters of white space at each end, which is as good as more for every rule.

    >>> _with_little_space(" " * 30 + "a\\n") == " " * 20 + "a\\n"
    True
    """
    bare = text.strip()
    before = len(text) - len(text.lstrip()) if bare else len(text)
    return _little_space(text[:before]) + bare + _little_space(text[before + len(bare) :])


def _little_space(space: str) -> str:
    if len(space) <= MAX_WAITING_SPACE:
        return space
    return ("\n" if space.strip(" ") else " ") * MAX_WAITING_SPACE


def _width(text: str) -> int:
    """The number of characters; a Chinese, Japanese or Korean one counts twice, because it is about a syllable.

    >>> _width("答案是五。"), _width("It is 5.")
    (10, 8)
    """
    return len(text) if text.isascii() else sum(1 + (east_asian_width(character) in "WF") for character in text)


# Where sentences end.

# Unicode 17.0, auxiliary/SentenceBreakProperty.txt: Sentence_Break=STerm, without the ASCII ones. First those of
# scripts that separate words by spaces, then those of East Asia and of all scripts.
_OWN_STOPS = (
    "\u0589\u061d-\u061f\u06d4\u0700-\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a\u104b\u1362\u1367\u1368\u166e"
    "\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8-\u1aab\u1b4e\u1b4f\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d-\u1b7f\u1c3b"
    "\u1c3c\u1c7e\u1c7f\u2cf9-\u2cfb\u2e2e\u2e3c\u2e53\u2e54\u2e60\u2e61\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce"
    "\ua8cf\ua92f\ua9c8\ua9c9\uaa5d-\uaa5f\uaaf0\uaaf1\uabeb\U00010a56\U00010a57\U00010f55-\U00010f59"
    "\U00010f86-\U00010f89\U00011047\U00011048\U000110be-\U000110c1\U00011141-\U00011143\U000111c5\U000111c6"
    "\U000111cd\U000111de\U000111df\U00011238\U00011239\U0001123b\U0001123c\U000112a9\U000113d4\U000113d5"
    "\U0001144b\U0001144c\U000115c2\U000115c3\U000115c9-\U000115d7\U00011641\U00011642\U0001173c-\U0001173e"
    "\U00011944\U00011946\U00011a42\U00011a43\U00011a9b\U00011a9c\U00011c41\U00011c42\U00011ef7\U00011ef8"
    "\U00011f43\U00011f44\U00016a6e\U00016a6f\U00016af5\U00016b37\U00016b38\U00016b44\U00016d6e\U00016d6f"
    "\U00016e98\U0001bc9f\U0001da88"
)
_WIDE_STOPS = "\u203c\u203d\u2047-\u2049\u3002\ufe12\ufe15\ufe16\ufe56\ufe57\uff01\uff1f\uff61"
_FULL_STOPS = "\u2024\ufe52\uff0e"  # Sentence_Break=ATerm without ".": they also occur in numbers
_CLOSING = "」』”’）】〉》»›)\\]\"'\ufe0f"

# A run of the same characters is tried from each of its characters, so its length is bounded: a model that repeats one
# character would take quadratic time. The ends are the same: of a longer run the last 50 characters match.
_END = re.compile(
    rf"""
    (?P<fence>^[ \t]*```.*?(?:^[ \t]*```[ \t]*$\n?|\Z))   # a block of code, closed or not
    | (?P<line>[ \t\r]{{0,50}}\n(?:[ \t\r]*\n)*)        # with the blank lines after it
    | (?P<wide>[!?…]{{0,50}}(?:[{_OWN_STOPS}{_WIDE_STOPS}]|[{_FULL_STOPS}](?!\d))   # no white space needed
        [!?{_OWN_STOPS}{_WIDE_STOPS}]*[{_CLOSING}]*(?:[ \t\r]*\n)*)
    | (?P<stop>[.?!…]{{1,50}}["'”’»›)\]*_`]{{0,50}})(?=\s|\Z)(?:[ \t\r]*\n)*
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_OWN_END = re.compile(rf"[{_OWN_STOPS}][{_CLOSING}\s]*\Z")
_MARKER = re.compile(r"(?:^|\n)[ \t]*(?:[-*•][ \t]+)?(?:\d{1,3}|[A-Za-z]|[ivx]{2,4})\.\Z")
_ABBREVIATED = re.compile(
    r"(?:\A|[^A-Za-z.])(?:e\.g|i\.e|a\.k\.a|z\.B|d\.h|cf|vs|approx|resp|Dr|Mr|Mrs|Ms|Prof|Fig|Figs|Eq|Eqs|Sec|Thm"
    r"|St|Mt|Gen|Sen|Gov|Rev|Lt|Capt|Sgt)\.\Z"
)
_BEFORE_SMALL = re.compile(r"(?:\A|[^A-Za-z.])(?:etc|al|ca|Inc|Ltd|Co|Corp|Jr|Sr|Ave|Dept|Univ|Ph\.D|[BM]\.Sc)\.\Z")
_CITED = re.compile(r"(?:\A|[^A-Za-z.])(?:al|ca)\.\Z")  # et al. 2020, ca. 5
_BEFORE_NUMBER = re.compile(
    r"(?:(?:\A|[^A-Za-z.])(?:Nos|Nr|pp|vol|Vol|ch|Ch|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept|Oct|Nov|Dec)"
    r"|[a-z,] (?:No|p))\.\Z"
)
_INITIALS = re.compile(r"(?<![^\W\d_])(?<!\.)(?:[^\W\d_]\.[ \u00a0\u202f]?)+[^\W\d_]\.\Z")  # p.m., U.S., z. B.
_FIRST_INITIAL = re.compile(r"(?<![^\W\d_])[a-zа-я]\.\Z")  # of z. B., т. е.
_NEXT_INITIAL = re.compile(r"[^\W\d_]\.(?=\s)")
_BEGINNING = {  # words that begin a sentence and rarely follow U.S. inside one
    "A", "After", "All", "Also", "An", "And", "Are", "As", "At", "Because", "Before", "Both", "But", "By", "Can",
    "Could", "Did", "Do", "Does", "Each", "Every", "Finally", "First", "For", "From", "Given", "He", "Hence", "Her",
    "Here", "His", "How", "However", "I", "If", "In", "Is", "It", "Its", "Let", "My", "Next", "No", "Not", "Now",
    "On", "Or", "Our", "Second", "She", "Should", "Since", "So", "Some", "Suppose", "That", "The", "Their", "Then",
    "There", "Therefore", "These", "They", "This", "Those", "Thus", "To", "Using", "Wait", "Was", "We", "Were",
    "What", "When", "Where", "Which", "While", "Who", "Why", "Will", "With", "Would", "Yes", "You", "Your",
}  # fmt: skip
_FIRST_WORD = re.compile(r"[^\W\d_]+")
_ELLIPSIS = re.compile(r"(?:\.\.+|…)[\"'”’)\]*_`]*\Z")


def _unmistakable(text: str) -> bool:
    """Whether a short text is certainly a sentence: at least two words, and the full stop of their script."""
    return len(text.split()) >= 2 and bool(_OWN_END.search(text))


def _ends(text: str) -> dict[int, bool]:
    """The character offsets at which pieces end; True where a comma between clauses ends the piece."""
    ends: dict[int, bool] = {}
    code = set()
    for end in _END.finditer(text):
        if end.lastgroup == "fence":
            code.add(end.span())
            ends[end.start()] = False
        if end.lastgroup != "stop" or "\n" in end[0] or _is_end(text, *end.span()):
            ends[end.end()] = False
    ends.pop(0, None)
    for a, b in pairwise([0, *sorted(ends), len(text)]):
        if (a, b) not in code:
            ends |= {a + comma: True for comma in _commas(text[a:b]) if a + comma not in ends}
    return ends


def _is_end(text: str, start: int, at: int) -> bool:
    """Whether the full stop (question mark, …) at `start:at` ends a sentence."""
    rest = text[at : at + 40].lstrip()
    following = rest[:1]
    before = "\n" * (start < 12) + text[max(0, start - 12) : start + 1]
    if _MARKER.search(before) or _ABBREVIATED.search(before):
        return False
    if _BEFORE_SMALL.search(before) and (following.islower() or following == "("):
        return False
    if _CITED.search(before) and following.isdigit():
        return False
    if _BEFORE_NUMBER.search(before) and following.isdigit():
        return False
    if _FIRST_INITIAL.search(before) and _NEXT_INITIAL.match(rest):
        return False
    if following and (initials := _INITIALS.search(before)):
        word = _FIRST_WORD.match(rest)
        return following.isupper() and (initials[0].islower() or (word is not None and word[0] in _BEGINNING))
    return not _ELLIPSIS.match(text[start:at]) or not following or following.isupper()


# Clauses of shorthand.

_ITEM = re.compile(r"\d+(?:[.,]\d+)*|[A-Za-z]+(?:'[a-z]+)?|[^\sA-Za-z\d]")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_RELATION = re.compile(r"[\w)\]}%°²³!'][ ]?(?:=|==|≈|≡|→|->|=>|≤|≥|\\approx|\\equiv|\\to)[ ]?[-+−(\[{\\$\w]")
_RESULT = re.compile(r"[a-z]+ \d{2,}")
_CONDITION = {"for", "if", "when", "with", "where", "since", "as", "let", "given", "while", "because", "suppose"}


def _commas(sentence: str) -> list[int]:
    """The character offsets after the commas that separate two computed clauses."""
    depth = 0
    commas = []
    for at, character in enumerate(sentence):
        depth = max(0, depth + (character in "([{") - (character in ")]}"))
        if character == "," and depth == 0 and sentence[at + 1 : at + 2] == " ":
            commas.append(at + 1)
    edges = [0, *commas, len(sentence)]
    clauses = [sentence[a:b].strip(" ,.;?!\n") for a, b in pairwise(edges)]
    return [at for at, (before, after) in zip(commas, pairwise(clauses)) if _alike(before, after)]


def _alike(first: str, second: str) -> bool:
    """Whether both clauses are equations, both are results, or both have the same shape (one may be shorter)."""
    if _equation(first) and _equation(second):
        return True
    if _RESULT.fullmatch(first) and _RESULT.fullmatch(second):
        return True
    a, b = _shape(first), _shape(second)
    if len(a) == 3 and a == b and a[0] == a[2] and _ITEM.findall(first)[2] == _ITEM.findall(second)[0]:
        return True
    short = min(len(a), len(b))
    return short >= 3 and a[:short] == b[:short] and _terse(first) and _terse(second)


def _equation(clause: str) -> bool:
    """Whether the clause is an equation with at most one word, and not a condition."""
    words = [word.lower() for word in _WORD.findall(clause)]
    return bool(_RELATION.search(clause)) and len(words) <= 1 and not _CONDITION & set(words)


def _worked(text: str) -> bool:
    """Whether a text is an equation or a word with its result, however short it is."""
    return _equation(text) or bool(_RESULT.fullmatch(text.strip(" ,.;")))


def _shape(clause: str) -> list[str]:
    """The items of a clause: numbers as 0, capitalized words as A, others unchanged.

    >>> _shape("1 Jim to Kay")
    ['0', 'A', 'to', 'A']
    """
    return ["0" if i[0].isdigit() else "A" if i[0].isupper() else i for i in _ITEM.findall(clause)]


def _terse(clause: str) -> bool:
    """Whether the clause is mostly numbers and names, as in `min 2 left 459` or `Eve and Oz: Eve to Oz`."""
    shape = _shape(clause)
    numbers, names = shape.count("0"), shape.count("A")
    few_words = len(shape) <= 10 and 2 * (numbers + names) >= len(shape) - 1
    return few_words and (numbers >= 2 or numbers + names >= 3) and (numbers > 0 or ":" in shape)


# The kind of a step: the classes of Thought Anchors (arXiv 2506.19143), by rules that are tried in this order.
# They take linear time: of several places in a line where a rule could begin, an atomic group `(?>…)` tries the first.

_RULES: tuple[tuple[str, str], ...] = (
    (
        "final_answer_emission",
        r"\bfinal answer\b|\banswer(?: is|:|=)|\\boxed|\bi(?:'ll| will| should)? (?:now )?(?:answer|respond|reply)\b"
        r"|\b(?:output|return|respond|answer)(?: with)?:|答案",
    ),
    (
        "uncertainty_management",
        r"^(?:wait|hmm+|hm|but wait|oops|no,|actually|alternatively)\b|\bwait\b[,.!]|\bhmm+\b|\bmaybe\b|\bperhaps\b"
        r"|\bnot (?:sure|certain|clear)\b|\bunclear\b|\bi(?:'m| am) (?:stuck|confused|unsure)|\bmistake\b"
        r"|\bthat's wrong\b|\bmight be\b|(?m:^)(?>.*?\b(?:but|or) (?:what|is|does|could|should)\b).*\?|^等",
    ),
    (
        "self_checking",
        r"\b(?:double[- ])?check(?:s|ing|ed)?\b|\bverif(?:y|ies|ied|ying|ication)\b|\bsanity\b|\bmakes sense\b"
        r"|\bconfirm(?:s|ed|ing)?\b|\bconsistent\b|\blooks (?:right|good|correct)\b"
        r"|^(?:good|correct|right|yes|indeed|ok|okay)\b",
    ),
    (
        "active_computation",
        r"(?m:^)(?>.*?\d(?=[^\w\-+*/×·÷^−%]*[-+*/×·÷^−%])\W+\d).*?(?:=|≈|≡|→|->)\s*[-−]?\$?\d"
        r"|(?:(?<!\S)[^\s=≈]*[=≈]|[=≈]\s+)\S*\d\s*[-+*/×·÷^−]\s*\d",
    ),
    (
        "problem_setup",
        r"\bthe user\b|\b(?:user|question|problem|task|prompt) (?:asks?|says?|wants?|is|states?|gives?)\b"
        r"|\bwe(?:'re| are) (?:given|asked)\b|\bis given\b|^given\b|^(?:question|problem|task)\b"
        r"|\bwe (?:need|have|want) to (?:find|answer|compute|determine|produce|solve|write|respond)\b",
    ),
    (
        "plan_generation",
        r"\blet(?:'s| us| me)\b|\bwe (?:need to|should|can|could|will|must|'ll)\b|^first\b|\bplan\b|\bapproach\b"
        r"|\bi (?:need to|should|can|will|'ll)\b|^(?:next|then)\b.*\b(?:we|i|use|try|do)\b|\bstrategy\b"
        r"|^(?:use|try|copy|consider|compute|find|start)\b",
    ),
    (
        "fact_retrieval",
        r"\brecall\b|\bremember\b|\bby definition\b|\bdefin(?:ed|ition)\b|\bformula\b|\btheorem\b|\bknown\b"
        r"|\bwe know\b|\bthe fact\b|\baccording to\b|\bis (?:called|named|located|the capital)\b",
    ),
)
_AFTER = (
    (
        "result_consolidation",
        r"^(?:so|thus|hence|therefore|in total|overall|in summary|total|altogether|finally)\b|^所以|^因此",
    ),
    ("fact_retrieval", r"^(?:the|an?|[a-z]+) (?:[\w-]+ ){0,6}(?:is|are|was|were|has|have|means|equals)\b"),
)


def kind(text: str) -> str:
    """The kind of a step, one of `KINDS`, from its words alone.

    >>> kind(" 7+8=15,"), kind(" c=b*2,"), kind("Wait, that is not right."), kind("So the answer is 14.")
    ('active_computation', 'fact_retrieval', 'uncertainty_management', 'final_answer_emission')
    """
    text = re.sub(r"\A[-*•>\s]*(?:\d{1,3}[.)]\s)?\s*", "", text.replace("’", "'")).strip()[:KIND_CHARACTERS]
    lower = text.lower()
    for name, pattern in _RULES:
        if re.search(pattern, lower):
            return name
    if _equation(text):
        return "fact_retrieval"  # a definition, restated
    if _terse(text.strip(" ,.;?!")):
        return "active_computation"
    return next((name for name, pattern in _AFTER if re.search(pattern, lower)), "unknown")
