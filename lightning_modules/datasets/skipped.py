"""Broken files among many: each is left out, named in the log and counted, and too many end the work."""

import logging

FIRST = 100  # files after which the share of broken ones is judged as such

log = logging.getLogger(__name__)


class Skipped:
    """Counts broken files, logs each, and ends the work when there are too many.

    Args:
        what: the files are, in the plural.
        limit: largest share of broken files among those tried, the first hundred counting as a hundred; 0 for none.
    """

    def __init__(self, what: str, limit: float):
        self.what, self.limit, self.tried, self.broken = what, limit, 0, 0

    def read(self) -> None:
        """Note a file that could be read."""
        self.tried += 1

    def skip(self, error: ValueError) -> None:
        """Note one that could not.

        Raises:
            ValueError: there are more than the limit.
        """
        self.tried += 1
        self.broken += 1
        log.warning("left out: %s (%d of %d %s so far)", error, self.broken, self.tried, self.what)
        if self.broken > self.limit * max(self.tried, FIRST):
            raise ValueError(
                f"{self.broken} of {self.tried} {self.what} are broken, more than max_broken ({self.limit}) allows; "
                f"the last: {error}. Complete the copy, or raise max_broken and say so beside the results."
            ) from error
