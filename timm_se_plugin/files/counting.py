"""Numbers with what they count, in messages."""

__all__ = ['counted']


def counted(number: int, one: str, several: str = '') -> str:
    """A number with a noun in the singular or the plural: ``counted(1, 'box', 'boxes')`` is ``'1 box'``.

    Args:
        number: how many there are.
        one: the noun in the singular.
        several: the noun in the plural; `one` with an s if empty.
    """
    return f'{number:,} {one if number == 1 else several or f"{one}s"}'
