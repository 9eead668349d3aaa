"""When an audit is due: what it costs is bounded."""

from __future__ import annotations

from dataclasses import dataclass

MOST_SPARE = 2.0
RETRIAL_TILES = 4


@dataclass(kw_only=True)
class Docket:
    """Audits that come by the calendar, and a small account for those that doubts ask for.

    One tile in ``every`` is audited whatever it shows, beginning with the first. Doubts may have two more at once, and
    the account grows by one in ``every`` tiles: in the long run no more than two tiles in ``every`` are audited.
    """

    tiles: int = 0
    """Since the last audit by the calendar; 0 before the first."""
    spare: float = MOST_SPARE
    """How many more the doubts may ask for."""
    wait: int = 0
    """Tiles until a convicted sensor is examined again."""
    pause: int = RETRIAL_TILES
    """The next such wait: it doubles with every conviction."""
    suspected: bool = False
    """The last audit saw a fault that did no harm in its tile: the next may."""
    audits: int = 0
    """How many there were."""

    def next_tile(self, every: int, possible: bool, doubtful: bool, convicted: bool) -> bool:
        """Whether the tile is to be audited; call once per tile.

        Args:
            every: see the class.
            possible: both sensors delivered, and no cheaper check has condemned one.
            doubtful: there are doubts about a sensor that is in use.
            convicted: a sensor waits to be acquitted.
        """
        self.spare = min(MOST_SPARE, self.spare + 1 / every)
        self.wait = max(0, self.wait - 1)
        due = self.tiles == 0 or self.tiles >= every
        retrial = convicted and self.wait == 0
        audit = possible and (due or ((doubtful or retrial or self.suspected) and self.spare >= 1))
        if audit:
            self.audits += 1
            self.spare -= not due
        self.tiles = 1 if audit and due else self.tiles + bool(self.tiles)
        return audit

    def judged(self, guilty: bool, every: int, *, again: bool = False, suspected: bool = False) -> None:
        """How the audit ended, whether the next tile has to confirm it, and whether it left a suspicion."""
        self.suspected = not guilty and (suspected or self.suspected) and self.spare >= 1
        self.tiles = 0 if again else self.tiles
        self.wait, self.pause = (self.pause, min(2 * self.pause, every)) if guilty else (0, RETRIAL_TILES)
