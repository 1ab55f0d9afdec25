"""Which beginnings several prompts share, so that each is read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MIN_SHARED = 16  # tokens; a shorter beginning is read again with each prompt


@dataclass(eq=False)
class Prefix:
    """The first `length` tokens of several prompts. `parent` is the longest shared prefix that is a part of it."""

    length: int
    parent: "Prefix | None" = None
    n_users: int = 0  # prompts and longer prefixes that come directly after it
    first: int = 0  # the smallest number of a prompt that begins with it

    @property
    def path(self) -> "list[Prefix]":
        """The prefixes of this one, shortest first, and itself."""
        path: list[Prefix] = []
        prefix: Prefix | None = self
        while prefix:
            path.append(prefix)
            prefix = prefix.parent
        return path[::-1]


def shared_prefixes(prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[Prefix | None]]:
    """The order in which the prompts are best read, and the longest shared prefix of each prompt.

    Prompts with a common beginning come one after the other, at the place of the first of them.

    >>> system = list(range(20))
    >>> order, prefixes = shared_prefixes([[*system, 50], [7] * 30, [*system, 60], [*system, 60]])
    >>> order, [prefix and prefix.length for prefix in prefixes]
    ([0, 2, 3, 1], [20, None, 21, 21])
    """
    prefixes: list[Prefix | None] = [None] * len(prompts)
    by_text = sorted(range(len(prompts)), key=lambda i: (list(prompts[i]), i))
    common = [_common_length(prompts[a], prompts[b]) for a, b in pairwise(by_text)]
    path: list[Prefix] = []  # of the prompt before
    for i, number in enumerate(by_text):
        before = common[i - 1] if i else 0
        after = common[i] if i < len(common) else 0
        passed = None
        while path and path[-1].length > before:
            passed = path.pop()
        if passed and before >= MIN_SHARED and before > _length(path):
            path.append(Prefix(before, _last(path)))
            passed.parent = path[-1]
        if after >= MIN_SHARED and after > _length(path):
            path.append(Prefix(after, _last(path)))
        prefixes[number] = _last(path)
    _count_users(prefixes)

    def place(number: int) -> tuple[int, ...]:
        """The numbers of the first prompt of each group around this one, and its own."""
        prefix = prefixes[number]
        return (*(p.first for p in prefix.path), number) if prefix else (number,)

    return sorted(range(len(prompts)), key=place), prefixes


def _count_users(prefixes: Sequence[Prefix | None]) -> None:
    """Fills in `n_users` and `first`, now that all parents are known."""
    seen: set[int] = set()
    for number, prefix in enumerate(prefixes):
        user_is_new = True
        while prefix:
            prefix.n_users += user_is_new
            user_is_new = id(prefix) not in seen
            if user_is_new:
                seen.add(id(prefix))
                prefix.first = number
            prefix = prefix.parent


def _last(path: list[Prefix]) -> Prefix | None:
    return path[-1] if path else None


def _length(path: list[Prefix]) -> int:
    return path[-1].length if path else 0


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of tokens with which both begin."""
    n = min(len(a), len(b))
    if list(a[:n]) == list(b[:n]):
        return n
    return next(i for i, (x, y) in enumerate(zip(a, b)) if x != y)
