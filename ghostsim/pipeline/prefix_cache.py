"""The prefix cache: prompt blocks in the tier of the KV and, when they leave it, in the tiers below."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence

HOME = ""
"""The tier in which running requests keep their KV."""


class PrefixCache:
    """Blocks by id, least recently used first to leave.

    Blocks at home are held by running requests or free; free ones make room when it is needed. A block that leaves
    home is written to the first tier below unless it is there; one that leaves that, to the next; one that leaves the
    last is dropped. A block that is read from below stays there as well.

    Parameters
    ----------
    block_bytes
        Bytes of a block over all layers and KV heads.
    below
        Capacity in bytes of each tier below, in order.
    """

    def __init__(self, block_bytes: int, below: Mapping[str, int]) -> None:
        self.block_bytes = block_bytes
        self.room = {tier: capacity // block_bytes for tier, capacity in below.items()}
        self.below: dict[str, OrderedDict[int, None]] = {tier: OrderedDict() for tier in below}
        self.free: OrderedDict[int, None] = OrderedDict()
        self.held: Counter[int] = Counter()
        self.counts: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()

    @property
    def home_bytes(self) -> int:
        """Bytes of all blocks at home."""
        return (len(self.free) + len(self.held)) * self.block_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes of the blocks at home that nobody holds."""
        return len(self.free) * self.block_bytes

    def tier_bytes(self, tier: str) -> int:
        """Bytes of the blocks in a tier below, 0 if it is none."""
        return len(self.below.get(tier, ())) * self.block_bytes

    def find(self, ids: Sequence[int]) -> list[str]:
        """Return the tiers of the leading blocks that are in some tier, the highest of each."""
        found = []
        for block in ids:
            tier = self._tier_of(block)
            if tier is None:
                break
            found.append(tier)
        return found

    def _tier_of(self, block: int) -> str | None:
        if block in self.held or block in self.free:
            return HOME
        return next((tier for tier, blocks in self.below.items() if block in blocks), None)

    def hold(self, ids: Iterable[int]) -> None:
        """Keep blocks that are at home from leaving."""
        for block in ids:
            self.free.pop(block, None)
            self.held[block] += 1

    def release(self, ids: Sequence[int]) -> None:
        """Let go of blocks; the first of a prompt are used last, as the others are worth nothing without them."""
        for block in reversed(ids):
            self.held[block] -= 1
            if not self.held[block]:
                del self.held[block]
                self.free[block] = None

    def add(self, ids: Iterable[int]) -> list[int]:
        """Take blocks into home and hold them; return those that were not there."""
        new = [block for block in ids if block not in self.held and block not in self.free]
        self.hold(new)
        self.counts["added"] += len(new)
        return new

    def count(self, found: Sequence[str], ids: Sequence[int]) -> None:
        """Count the look-up of a prompt that is admitted."""
        self.hits.update(found)
        self.counts["missed"] += len(ids) - len(found)

    def touch(self, found: Sequence[str], ids: Sequence[int]) -> None:
        """Make blocks in tiers below the most recent ones."""
        for block, tier in reversed(list(zip(ids, found, strict=False))):
            if tier:
                self.below[tier].move_to_end(block)

    def evict(self, nbytes: int) -> tuple[Counter[str], Counter[str]]:
        """Free at least so many bytes at home.

        Returns
        -------
        pair of counters
            Bytes written to each tier from home, which must be over before the room is free, and from the tiers
            below, which happens behind.
        """
        out: Counter[str] = Counter()
        behind: Counter[str] = Counter()
        for _ in range(-(-nbytes // self.block_bytes)):
            block, _ = self.free.popitem(last=False)
            self.counts["evicted"] += 1
            self._sink(block, out, behind)
        return out, behind

    def _sink(self, block: int, written: Counter[str], behind: Counter[str]) -> None:
        for tier, blocks in self.below.items():
            if not self.room[tier]:
                continue
            if block in blocks:
                blocks.move_to_end(block)
                return
            blocks[block] = None
            written[tier] += self.block_bytes
            if len(blocks) <= self.room[tier]:
                return
            block, _ = blocks.popitem(last=False)
            written = behind
        self.counts["dropped"] += 1
