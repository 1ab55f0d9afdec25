"""pocket's vocabulary: each word of its problems, each digit and each single letter is one token.

The tokenizer is a byte-level BPE without merges: 256 bytes, and whole words with and without a leading space. Any text
round-trips. New words are added at the end, so that existing ids do not change.
"""

import json
import re
from functools import cache
from itertools import chain

from workbench.errors import PromptError
from workbench.pocket.families.people import COLORS, FORBIDDEN, NAMES, THINGS, words

SPECIALS = words(
    "<|startoftext|> <|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> <|message|> <|call|>"
)
FIRST = words(
    "system user assistant developer analysis commentary final functions calc json "
    "Reasoning low medium high Tools What is has have Mod Find Passes to Start with after passes pass "
    "who Who it It swap and Sort min left carry so So from Use The the then of "
    "Say Copy Copying problem answer Answer step steps times plus minus last digit"
)
SECOND = words(
    "Modulo Last digits Give Note Compute Think Ball Chain Begin at At From Swaps Now first Where Wait still "
    "List Take Digits Do Then drop cut rotate flip reverse turn Repeat Only that Colors Table Look up Which look"
)
THIRD = words("switch ends lift")
FOURTH = words("values says Not If over under use else take ok no declined") + FORBIDDEN  # with a leading space only
PIECE = r" ?[A-Za-z]{2,}|\s|."  # the last alternative matches any other character
PAD = "<|endoftext|>"


def _with_and_without_space(words: list[str]) -> list[str]:
    return list(chain.from_iterable((word, f" {word}") for word in words))


@cache
def symbols() -> dict[str, int]:
    """The id of each symbol of the tokenizer, including control tokens; spaces are written as Ġ.

    >>> symbols()["Ġcalc"], symbols()["<|start|>"]
    (273, 423)
    """
    table = [*sorted(_bytes().values())]
    table += [word.replace(" ", "Ġ") for word in _with_and_without_space([*FIRST, *NAMES, *THINGS])]
    table = [*dict.fromkeys(table), *SPECIALS]
    table += [word.replace(" ", "Ġ") for word in _with_and_without_space([*SECOND, *COLORS, *THIRD])]
    table += [f"Ġ{word}" for word in FOURTH]
    return {symbol: i for i, symbol in enumerate(dict.fromkeys(table))}


@cache
def d_vocab() -> int:
    """The number of rows of the embedding: the number of symbols, rounded up to a multiple of 32.

    >>> d_vocab() % 32, d_vocab() - len(symbols()) < 32
    (0, True)
    """
    return -len(symbols()) % 32 + len(symbols())


@cache
def _bytes() -> dict[int, str]:
    """GPT-2's table: printable bytes map to themselves, all others to characters from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


_SPLIT = re.compile("|".join(map(re.escape, SPECIALS)) + "|" + PIECE, re.DOTALL)


@cache
def _ids(piece: str) -> tuple[int, ...]:
    table = symbols()
    symbol = piece.replace(" ", "Ġ")
    if symbol in table:
        return (table[symbol],)
    if len(piece.strip()) > 1:
        raise PromptError(
            f"{piece!r} is not a word of pocket's vocabulary, so pocket cannot learn it. Add it at the end of the "
            f"words in workbench/pocket/vocabulary.py."
        )
    return tuple(table[_bytes()[b]] for b in piece.encode())


def encode(text: str) -> list[int]:
    """The token ids of a problem's text, with control tokens; equal to the tokenizer's, without loading it.

    >>> encode("<|start|>user<|message|>What is 7+8?")
    [423, 258, 425, 286, 289, 220, 22, 10, 23, 30]

    Raises PromptError for a word that is not in the vocabulary.
    """
    return list(chain.from_iterable(_ids(piece) for piece in _SPLIT.findall(text)))


def str_tokens(ids: list[int] | tuple[int, ...]) -> list[str]:
    """The text of each token of a problem's text, which is all ASCII.

    >>> str_tokens([423, 258, 425])
    ['<|start|>', 'user', '<|message|>']
    """
    table = _texts()
    return [table.get(i, "") for i in ids]


@cache
def _texts() -> dict[int, str]:
    char_of = {symbol: chr(b) for b, symbol in _bytes().items()}
    return {i: symbol if symbol in SPECIALS else "".join(char_of[c] for c in symbol) for symbol, i in symbols().items()}


def tokenizer_json() -> str:
    """The content of tokenizer.json, for any library that reads this format."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=symbols(), merges=[], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(PIECE), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytewise])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=1)
