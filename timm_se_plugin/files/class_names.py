"""Names of classes that are probably meant as one."""

from collections.abc import Iterable

__all__ = ['nearly_equal']


def nearly_equal(names: Iterable[str]) -> list[str]:
    """For each group of names that differ only in letter case or blanks, the beginning of a sentence about them."""
    groups: dict[str, dict[str, None]] = {}
    for name in names:
        groups.setdefault(''.join(name.casefold().split()), {})[name] = None
    return [f'{" and ".join(map(repr, group))} differ only in letter case or blanks'
            for group in groups.values() if len(group) > 1]
