"""Text of a figure, made visible: the same in the pictures and in plotly."""

from workbench.text import visible

SPACE = "␣"  # how labels of tokens show a space


def token(piece: str) -> str:
    """A token as a label with visible spaces.

    >>> token(" 12"), token("")
    ('␣12', '⟨empty⟩')
    """
    return piece.replace(" ", SPACE) or "⟨empty⟩"


def label(text: str) -> str:
    r"""The text with its hidden characters visible, a line feed as ↵; ␣, with which `token` shows spaces, stays.

    >>> label(token(" a\n\x1b"))
    '␣a↵␛'
    """
    return SPACE.join(visible(part, newline="↵") for part in text.split(SPACE))
