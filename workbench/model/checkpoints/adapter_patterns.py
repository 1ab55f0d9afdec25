"""The patterns of adapter_config.json that give modules a rank or an alpha of their own.

PEFT runs each key as a regular expression. A stranger's expression may take for ever, so only a part of the language is
accepted here, in which a match takes at most a few thousand steps: letters, digits, `_`, `-`, `.`, `\\.`, `\\d` and
classes such as `[0-3]`, each perhaps with `*`, `+`, `?` or `{1,3}`; groups of words such as `(q_proj|k_proj)`; `^` and
`$`. That is more than any published adapter uses.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workbench.errors import CheckpointError
from workbench.text import brief

MAX_PATTERNS = 10_000
MAX_LENGTH = 500  # characters of a pattern
MAX_BRANCHES = 3  # groups, and characters with `*` and the like: a match may try every combination of them
MAX_WITH_BRANCHES = 50  # patterns
NAME = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_WORD = r"(?:[A-Za-z0-9_-]|\\?\.)"
_GROUP = re.compile(rf"\((?:\?:)?{_WORD}+(?:\|{_WORD}+)*\)(?![*+?{{])")
_REPEAT = r"(?:[*+?]|\{[0-9]{1,2}(?:,[0-9]{0,2})?\})\??"
_CHARACTER = re.compile(rf"(?:[A-Za-z0-9_-]|\\?\.|\\d|\[[A-Za-z0-9_-]+\])({_REPEAT})?(?![*+?{{])")


@dataclass(frozen=True, slots=True)
class Patterns:
    """The values of a setting by pattern, such as `rank_pattern`."""

    by_name: Mapping[str, Any]  # the keys that are plain names, with all others, in their order
    compiled: Mapping[str, "re.Pattern[str] | None"]  # None for a plain name

    def value(self, name: str, default: Any) -> Any:
        """The value of the first key that matches the end of `name`, as PEFT does; else `default`."""
        for key, value in self.by_name.items():
            pattern = self.compiled[key]
            if name == key or name.endswith(f".{key}") if pattern is None else pattern.match(name):
                return value
        return default


def read_patterns(setting: str, patterns: Mapping[str, Any], where: str) -> Patterns:
    """The patterns of a setting. Raises CheckpointError for one that is not in the accepted part of the language."""
    if len(patterns) > MAX_PATTERNS:
        raise CheckpointError(f"{where}: {setting} has {len(patterns):,} keys; at most {MAX_PATTERNS:,} are allowed.")
    compiled: dict[str, re.Pattern[str] | None] = {}
    n_with_branches = 0
    for key in patterns:
        compiled[key] = None
        if len(key) > MAX_LENGTH or not NAME.fullmatch(key):
            n_branches = _branches(key)
            n_with_branches += n_branches > 0
            if n_branches > MAX_BRANCHES or n_with_branches > MAX_WITH_BRANCHES:
                raise _refusal(setting, key, where)
            try:
                compiled[key] = re.compile(rf"(?:.*\.)?(?:{key})$")
            except re.error:  # a range such as [9-0]
                raise _refusal(setting, key, where) from None
    return Patterns(patterns, compiled)


def _branches(key: str) -> int:
    """The number of places where a match may go on in several ways; above the limit outside the accepted language."""
    if not key or len(key) > MAX_LENGTH:
        return MAX_BRANCHES + 1
    at, end = int(key.startswith("^")), len(key) - key.endswith("$")
    n_branches = 0
    while at < end:
        group, character = _GROUP.match(key, at, end), _CHARACTER.match(key, at, end)
        part = group or character
        if part is None:
            return MAX_BRANCHES + 1
        n_branches += bool(group) or bool(character and character[1])
        at = part.end()
    return n_branches


def _refusal(setting: str, key: str, where: str) -> CheckpointError:
    return CheckpointError(
        f"{where}: the key {brief(key)!r} of {setting} is not a pattern that workbench runs. Allowed are names such as "
        f"'q_proj', and up to {MAX_WITH_BRANCHES} patterns with '.*', '\\d+', '[0-3]' or '(q_proj|k_proj)' at up to "
        f"{MAX_BRANCHES} places. Write the names of the modules out, such as 'layers.0.self_attn.q_proj'."
    )
