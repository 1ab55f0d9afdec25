"""The names, things and colors that problems share, and the things that are refused; each is one token."""


def words(text: str) -> tuple[str, ...]:
    """The words of a text.

    >>> words("key map")
    ('key', 'map')
    """
    return tuple(text.split())


NAMES = words("Ann Bob Cal Dee Eve Fay Gus Hal Ida Jim Kay Leo Mia Ned Oz Pam")
THINGS = words("key map cup hat pen box")
COLORS = words("red blue green gold pink gray black white")
FORBIDDEN = words("fuse vial wire coil")  # harmless words, each in place of something that a model refuses
