"""Numbers with their nouns, for messages."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """(1, "image") -> "1 image"; (2, "class", "classes") -> "2 classes".

    Args:
        plural: of the noun; empty: the noun with an s.
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
