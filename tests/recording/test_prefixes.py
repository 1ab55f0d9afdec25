"""Shared beginnings of prompts: the longest one of each prompt, once each, and an order that keeps groups together."""

from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.recording import prefixes
from workbench.recording.prefixes import Prefix, shared_prefixes

PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple), min_size=1, max_size=10)


def common(a, b) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def by_text(prompts, longest: list[Prefix | None]) -> dict[tuple, Prefix]:
    """Every prefix by its tokens. Asserts that no tokens have two."""
    found: dict[tuple, Prefix] = {}
    for prompt, prefix in zip(prompts, longest):
        for each in prefix.path if prefix else []:
            assert found.setdefault(prompt[: each.length], each) is each
    return found


@settings(max_examples=300, deadline=None)
@given(PROMPTS)
def test_prefixes_are_those_of_the_definition(prompts):
    with mock.patch.object(prefixes, "MIN_SHARED", 2):
        order, longest = shared_prefixes(prompts)
    assert sorted(order) == list(range(len(prompts)))
    for i, prefix in enumerate(longest):
        expected = max((common(prompts[i], prompts[j]) for j in range(len(prompts)) if j != i), default=0)
        assert (prefix.length if prefix else 0) == (expected if expected >= 2 else 0)
    found = by_text(prompts, longest)
    for tokens, prefix in found.items():
        members = [i for i, prompt in enumerate(prompts) if prompt[: prefix.length] == tokens]
        places = sorted(map(order.index, members))
        assert places == list(range(places[0], places[0] + len(members)))  # side by side
        assert prefix.first == min(members)
        users = sum(each is prefix for each in longest) + sum(each.parent is prefix for each in found.values())
        assert prefix.n_users == users


def test_groups_come_at_the_place_of_their_first_prompt():
    a, b = list(range(30)), list(range(100, 130))
    order, longest = shared_prefixes([[5], [*a, 1], b, [*a, 2], b])
    assert order == [0, 1, 3, 2, 4]
    assert [prefix and prefix.length for prefix in longest] == [None, 30, 30, 30, 30]


def test_a_beginning_shorter_than_the_minimum_is_not_shared():
    n = prefixes.MIN_SHARED
    for length, expected in ((n - 1, None), (n, n)):
        _, longest = shared_prefixes([[*range(length), 200], [*range(length), 201]])
        assert [prefix and prefix.length for prefix in longest] == [expected, expected]


def test_a_thousand_prefixes_in_each_other_are_no_recursion():
    prompts = [list(range(n)) for n in range(20, 1_120)]
    order, longest = shared_prefixes(prompts)
    assert order == list(range(1_100)) and longest[-1] and len(longest[-1].path) == 1_099
