"""One DRAM channel, cycle by cycle: slow, plain, and written from the standards' rules rather than from the model.

Every cycle looks at every waiting request, asks for each rule of the standard whether its command may go now, and sends
the oldest that may. Time of a command is its last cycle on the command bus. No refresh.
"""

from collections import deque
from itertools import product

import numpy as np

SPAN = 1 << 30
LENGTHS = {"DDR5": {"ACT": 2, "RD": 2, "WR": 2}, "HBM2": {"ACT": 2}, "HBM3": {"ACT": 3, "RD": 2, "WR": 2}}
LENGTHS["HBM4"] = LENGTHS["HBM3"]


def rules(t):
    """Return what must lie between two commands: before, after, where both fall (smallest common place), cycles."""
    after_write = t.nCWL + t.nBL
    yield from (("ACT", "RD", "bank", t.nRCD_RD), ("ACT", "WR", "bank", t.nRCD_WR), ("ACT", "PRE", "bank", t.nRAS))
    yield from (("ACT", "ACT", "bank", t.nRC), ("PRE", "ACT", "bank", t.nRP), ("RD", "PRE", "bank", t.nRTP))
    yield from (("WR", "PRE", "bank", after_write + t.nWR), ("ACT", "ACT", "group", t.nRRD_L))
    yield from (("ACT", "ACT", "unit", t.nRRD_S), ("PRE", "PRE", "unit", t.nPPD))
    yield from (("RD", "RD", "group", t.nCCD_L), ("WR", "WR", "group", t.nCCD_L_WR))
    yield from (("WR", "RD", "group", after_write + t.nWTR_L), ("WR", "RD", "unit", after_write + t.nWTR_S))
    yield from (("RD", "RD", "die", max(t.nBL, t.nCCD_S)), ("WR", "WR", "die", max(t.nBL, t.nCCD_S_WR)))
    yield from ((kind, kind, "stack", max(t.nBL, t.nCCD_R)) for kind in ("RD", "WR"))
    yield ("RD", "WR", "unit", t.nRTW)
    if t.ranks > 1:
        yield from ((one, two, "bus", t.nBL + t.nCS) for one, two in product(("RD",), ("RD", "WR")))
        yield from (("WR", "RD", "bus", after_write + t.nCS - t.nCL), ("WR", "WR", "bus", t.nBL))


def addresses(t, kind, record_bytes, read_fraction, records, rng):
    """Return (write, unit, die, group, bank, row) of every access under CHUNK256."""
    for i in range(records):
        write = rng.random() >= read_fraction
        first = (i if kind == "stream" else int(rng.integers(SPAN // record_bytes))) * record_bytes
        for address in range(first, first + max(record_bytes, t.access_bytes), t.access_bytes):
            rest = address // 256
            at = {}
            for name, size in (("pc", t.pseudochannels), ("bg", t.bankgroups), ("ba", t.banks_per_group),
                               ("sid", t.stack_ids), ("ra", t.ranks), ("co", t.row_bytes // 256)):  # fmt: skip
                rest, at[name] = divmod(rest, size)
            group = at["bg"] ^ (rest % t.bankgroups)
            bank = at["ba"] ^ (rest // t.bankgroups % t.banks_per_group)
            unit = (at["ra"], at["pc"])
            die = (*unit, at["sid"])
            yield write, unit, die, (*die, group), (*die, group, bank), rest % t.rows


class Loop:
    """State of the channel: when each kind of command last went to each place, and which row is open."""

    def __init__(self, t, queue):
        self.t, self.queue = t, queue
        self.rules = list(rules(t))
        self.length = LENGTHS.get(t.family, {})
        self.dual = t.family.startswith("HBM")
        self.last, self.rows, self.acts = {}, {}, {}
        self.free = {"row": 0, "column": 0}
        self.waiting = {False: [], True: []}
        self.opened = {}
        self.draining = False

    def legal(self, kind, request, now):
        """Say whether every rule lets `kind` go to the request's bank, beginning in this cycle."""
        _, unit, die, group, bank, _ = request
        bus = "column" if kind in {"RD", "WR"} else "row"
        if now < (self.free[bus] if self.dual else max(self.free.values())):
            return False
        now += self.length.get(kind, 1) - 1
        place = {"bank": bank, "group": group, "die": die, "unit": unit, "stack": unit, "bus": "bus"}
        inside = {"stack": die, "bus": unit}
        for before, after, where, cycles in self.rules:
            if after == kind and now < self.last.get((before, where, place[where]), -(10**9)) + cycles:
                if where in inside and self.last[before, "latest"][where] == inside[where]:
                    continue  # rules between ranks or stack levels do not hold within one
                return False
        recent = self.acts.get(unit, ())
        return kind != "ACT" or len(recent) < 4 or now >= recent[0] + self.t.nFAW

    def needed(self, request):
        row = self.rows.get(request[4])
        if row is None:
            return "ACT"
        return ("WR" if request[0] else "RD") if row == request[5] else "PRE"

    def choose(self, now):
        """Return the command that goes in this cycle: the oldest legal one, opened rows first."""
        opened = ((self.needed(each), each) for each in self.opened.values())
        queue = [(self.needed(each), each) for each in self.waiting[self.draining]]
        for kind, each in opened:
            if self.legal(kind, each, now):
                return kind, each
        for kind, each in queue:
            protected = kind == "PRE" and each[4] in self.opened
            if not protected and self.legal(kind, each, now):
                return kind, each
        return None

    def send(self, kind, request, now):
        write, unit, die, group, bank, row = request
        now += self.length.get(kind, 1) - 1
        self.free["column" if kind in {"RD", "WR"} else "row"] = now + 1
        places = {"bank": bank, "group": group, "die": die, "unit": unit, "stack": unit, "bus": "bus"}
        self.last |= {(kind, where, place): now for where, place in places.items()}
        self.last[kind, "latest"] = {"stack": die, "bus": unit}
        if kind == "ACT":
            self.acts.setdefault(unit, deque(maxlen=4)).append(now)
            self.rows[bank] = row
            self.waiting[write].remove(request)
            self.opened[bank] = request
        elif kind == "PRE":
            self.rows[bank] = None
        elif self.opened.get(bank) is request:
            del self.opened[bank]
        else:
            self.waiting[write].remove(request)

    def mode(self):
        written, reads = len(self.waiting[True]), len(self.waiting[False])
        if self.draining:
            self.draining = written >= 0.2 * self.queue or not reads
        else:
            self.draining = written > 0.8 * self.queue or not reads


def cycles_per_access(t, kind, record_bytes, read_fraction, queue, accesses=1500, warm=300):
    """Return the mean cycles of one access after a warm-up, the source never being empty."""
    per_record = max(1, record_bytes // t.access_bytes)
    records = (accesses + 400) // per_record + 1
    source = deque(addresses(t, kind, record_bytes, read_fraction, records, np.random.default_rng(7)))
    pending = {False: deque(), True: deque()}
    loop, done, started, inflight = Loop(t, queue), 0, 0, 0
    returning = deque()
    for now in range(10**7):
        while returning and returning[0] <= now:
            returning.popleft()
            inflight -= 1
        while source and inflight < 256:
            request = source.popleft()
            pending[request[0]].append(request)
            inflight += 1
        for write in (False, True):
            while pending[write] and len(loop.waiting[write]) < queue:
                loop.waiting[write].append(pending[write].popleft())
        loop.mode()
        for _ in range(2 if loop.dual else 1):  # HBM sends a row and a column command in one cycle
            if (chosen := loop.choose(now)) is None:
                break
            loop.send(*chosen, now)
            if chosen[0] in {"RD", "WR"}:
                done += 1
                started = now if done == warm else started
                returning.append(now + (0 if chosen[1][0] else t.nCL + t.nBL))
                if done == accesses:
                    return (now - started) / (accesses - warm)
    raise AssertionError("the loop did not end")
