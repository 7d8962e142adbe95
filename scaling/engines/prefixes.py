"""What an engine's prefix cache knows: pages of tokens, each by all that is before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

PAGE_TOKENS = 16
"""As in vLLM."""


class Prefixes:
    """Pages of the contexts seen so far.

    Nothing is ever forgotten and nothing takes memory: an upper bound of what a cache saves, close to it as long as
    the pages that are asked for again (a query, Delethink's head) are few and used often.
    """

    def __init__(self) -> None:
        self._pages: set[int] = set()

    def known(self, prompt: Sequence[int]) -> int:
        """Tokens at the prompt's front that need not be encoded: whole pages, at most all but its last token."""
        count = 0
        for page in _pages(prompt[:-1]):
            if page not in self._pages:
                break
            count += PAGE_TOKENS
        return count

    def add(self, context: Sequence[int]) -> None:
        self._pages.update(_pages(context))


def _pages(tokens: Sequence[int]) -> Iterator[int]:
    """A hash of each whole page and everything before it."""
    page = 0
    for start in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
        page = hash((page, tuple(tokens[start : start + PAGE_TOKENS])))
        yield page
