"""The bank machine of one DRAM controller: queues, banks and every JEDEC constraint, in integer cycles.

What each constraint means is JESD79-4 (DDR4), JESD79-5 (DDR5), JESD209-5 (LPDDR5), JESD235 (HBM2) and JESD238 (HBM3/4).
The controller is first-ready, first-come-first-served: the oldest request whose next command is
legal goes first; a request whose row was opened for it leaves the queue and keeps that row open until it is served.
Writes drain between 80 % and 20 % of the write queue; refresh goes before new requests, and closes every row.
Time jumps from command to command.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ghostsim.timing.dram_timing import DramTiming

NEVER = 1 << 62
_FIRST = -(1 << 40)  # added to a request's age: goes before all others that are legal in the same cycle
_LAST = 1 << 40
CAS_ACTIVE, CAS, ACT, PRE, PREAB, REF, ACT2 = range(7)
Command = tuple[int, int, int, int, int]  # cycle, rank among those of the same cycle, kind, bank, request
_NONE: Command = (NEVER, 0, CAS, 0, 0)


@dataclass(frozen=True)
class Rules:
    """Delays between commands in cycles, measured from the first cycle of each.

    A command of several cycles acts when its last cycle has arrived: a delay grows by the extra cycles of the command
    before it and shrinks by those of the command after it.
    """

    act_cycles: int
    cas_cycles: int
    pre_cycles: int
    dual_bus: bool
    half_cycle: bool
    split_activate: bool
    act_rd: int
    act_wr: int
    act_act: int
    act_pre: int
    act_ref: int
    pre_act: int
    pre_ref: int
    rd_pre: int
    wr_pre: int
    ref_act: int
    rd_data: int


def rules_of(timing: DramTiming) -> Rules:
    """Return the command-to-command delays of a timing set.

    Command lengths are the standard's: ACT, RD and WR of DDR5 take two cycles; HBM has a bus for row and one for
    column commands, and its third and fourth generation, counted in half cycles, takes 3 for ACT and 2 for RD and WR.
    """
    act, cas, pre = _command_cycles(timing)
    shift_act, shift_cas = act - pre, cas - pre
    write_end = timing.nCWL + timing.nBL + timing.nWR
    return Rules(
        act_cycles=act,
        cas_cycles=cas,
        pre_cycles=pre,
        dual_bus=timing.family.startswith("HBM"),
        half_cycle=timing.family in {"HBM3", "HBM4"},
        split_activate=timing.family == "LPDDR5",
        act_rd=timing.nRCD_RD + act - cas,
        act_wr=timing.nRCD_WR + act - cas,
        act_act=timing.nRC,
        act_pre=timing.nRAS + shift_act,
        act_ref=timing.nRC + shift_act,
        pre_act=timing.nRP - shift_act,
        pre_ref=timing.nRP,
        rd_pre=timing.nRTP + shift_cas,
        wr_pre=write_end + shift_cas,
        ref_act=timing.nRFC - shift_act,
        rd_data=timing.nCL + timing.nBL,
    )


def _command_cycles(timing: DramTiming) -> tuple[int, int, int]:
    lengths = {"DDR5": (2, 2, 1), "HBM2": (2, 1, 1), "HBM3": (3, 2, 1), "HBM4": (3, 2, 1)}
    return lengths.get(timing.family, (1, 1, 1))


def cas_spacing(timing: DramTiming) -> list[list[list[tuple[int, int, int]]]]:
    """Return, per [0 read | 1 write][die of the command], what it delays: (die, delay of reads, delay of writes).

    A die is a rank, or a stack level of one pseudo-channel. Pseudo-channels delay each other by nothing.
    """
    dies = timing.units * timing.stack_ids
    return [[_spaced(timing, write, die) for die in range(dies)] for write in (False, True)]


def _spaced(timing: DramTiming, write: bool, die: int) -> list[tuple[int, int, int]]:
    unit = die // timing.stack_ids
    same_unit = [unit * timing.stack_ids + level for level in range(timing.stack_ids)]
    rows = [(other, *_same_unit_delays(timing, write, other != die)) for other in same_unit]
    if timing.pseudochannels == 1:
        elsewhere = [other for other in range(timing.units * timing.stack_ids) if other not in same_unit]
        rows += [(other, *_other_rank_delays(timing, write)) for other in elsewhere]
    return rows


def _same_unit_delays(timing: DramTiming, write: bool, sibling: bool) -> tuple[int, int]:
    if write:
        same = max(timing.nBL, timing.nCCD_R if sibling else timing.nCCD_S_WR)
        return timing.nCWL + timing.nBL + timing.nWTR_S, same
    return max(timing.nBL, timing.nCCD_R if sibling else timing.nCCD_S), timing.nRTW


def _other_rank_delays(timing: DramTiming, write: bool) -> tuple[int, int]:
    if write:
        return timing.nCWL + timing.nBL + timing.nCS - timing.nCL, timing.nBL
    return timing.nBL + timing.nCS, timing.nBL + timing.nCS


class Queue:
    """Waiting reads or writes by bank, oldest first, with each bank's oldest row hit and oldest other request."""

    __slots__ = ("capacity", "hit", "other", "size", "waiting")

    def __init__(self, banks: int, capacity: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.waiting: dict[int, list[int]] = {}
        self.hit = [-1] * banks
        self.other = [-1] * banks

    def add(self, seq: int, bank: int, is_hit: bool) -> None:
        """Append the youngest request."""
        self.size += 1
        self.waiting.setdefault(bank, []).append(seq)
        oldest = self.hit if is_hit else self.other
        if oldest[bank] < 0:
            oldest[bank] = seq

    def remove(self, seq: int, bank: int) -> None:
        """Take a request out; `refresh` of the bank must follow."""
        self.size -= 1
        waiting = self.waiting[bank]
        waiting.remove(seq)
        if not waiting:
            del self.waiting[bank]

    def refresh(self, bank: int, row: int, rows: list[int]) -> None:
        """Find the bank's oldest hit and oldest other request again, `row` being open (-1: none)."""
        hit = other = -1
        for seq in self.waiting.get(bank, ()):
            if rows[seq] == row:
                if hit < 0:
                    hit = seq
                    if other >= 0:
                        break
            elif other < 0:
                other = seq
                if hit >= 0:
                    break
        self.hit[bank], self.other[bank] = hit, other


class Controller:
    """One controller with its banks; `time` is the cycle of its next command.

    Requests are numbers into the lists `banks`, `rows` and `writes` that all controllers of a channel share.
    """

    def __init__(
        self,
        timing: DramTiming,
        banks: list[int],
        rows: list[int],
        read_queue: int,
        write_queue: int,
        *,
        closed_page: bool = False,
    ) -> None:
        self.closed_page = closed_page
        self.timing, self.rules = timing, rules_of(timing)
        self.bank_of, self.row_of = banks, rows
        count, dies = timing.units * timing.banks, timing.units * timing.stack_ids
        self.group = [bank // timing.banks_per_group for bank in range(count)]
        self.die = [group // timing.bankgroups for group in self.group]
        self.unit = [die // timing.stack_ids for die in self.die]
        self.reads, self.writes = Queue(count, read_queue), Queue(count, write_queue)
        self.high_water, self.low_water = 0.8 * write_queue, 0.2 * write_queue
        self.draining = False
        self.spacing = cas_spacing(timing)
        self.open_row = [-1] * count
        self.act_at, self.pre_at = [0] * count, [0] * count
        self.cas_at = [[0] * count, [0] * count]
        self.group_cas = [[0] * dies * timing.bankgroups, [0] * dies * timing.bankgroups]
        self.group_act = [0] * dies * timing.bankgroups
        self.die_cas = [[0] * dies, [0] * dies]
        self.unit_act, self.unit_pre = [0] * timing.units, [0] * timing.units
        self.unit_preab, self.unit_ref = [0] * timing.units, [0] * timing.units
        # Earliest [ACT of a closed bank, PRE of an open one]; a bank group spaces activations only.
        self.bank_row = [self.act_at, self.pre_at]
        self.group_row = [self.group_act, [0] * dies * timing.bankgroups]
        self.unit_row = [self.unit_act, self.unit_pre]
        self.recent_acts = [deque([-NEVER] * 4, maxlen=4) for _ in range(timing.units)]
        self.row_bus = self.column_bus = 0
        self.active: dict[int, tuple[int, bool]] = {}  # bank: request whose row was opened for it, and if it writes
        self.refreshing: deque[int] = deque()
        self.second_act: tuple[int, int] | None = None  # LPDDR5: bank and deadline of the second half of an ACT
        self.wck_until = 0
        self.time = NEVER
        self.command = self.next_row = _NONE

    def room(self, write: bool) -> bool:
        """Say whether a read or a write would still find a place."""
        queue = self.writes if write else self.reads
        return queue.size < queue.capacity

    def add(self, seq: int, write: bool) -> None:
        """Take a request in; `plan` must follow."""
        bank = self.bank_of[seq]
        (self.writes if write else self.reads).add(seq, bank, self.row_of[seq] == self.open_row[bank])

    def start_refresh(self) -> None:
        """Ask for an all-bank refresh of every rank or pseudo-channel; `plan` must follow."""
        self.refreshing.extend(range(self.timing.units))

    def _switch_mode(self) -> None:
        written = self.writes.size
        if self.draining:
            self.draining = written >= self.low_water or not self.reads.size
        else:
            self.draining = written > self.high_water or not self.reads.size

    def plan(self, floor: int) -> None:
        """Find the next command, not before cycle `floor`."""
        row_bus, column_bus = max(self.row_bus, floor), max(self.column_bus, floor)
        active = self._next_active(column_bus) if self.active else _NONE
        if self.refreshing:
            self.next_row = self._next_refresh(row_bus)
            best = min(active, self.next_row)
        else:
            self._switch_mode()
            self.next_row = self._next_row(row_bus)
            best = min(active, self._next_cas(column_bus), self.next_row)
        if self.second_act is not None:
            best = self._or_second_act(best, row_bus)
        self.command, self.time = best, best[0]

    def plan_same_cycle(self) -> None:
        """Move on to the row command that may share the cycle of the column command just issued."""
        at, _, kind, bank, _ = self.next_row
        issued, column_bank = self.time, self.command[3]
        same = at == issued and self.command[2] <= CAS and not (kind == PRE and bank == column_bank)
        self.command = self.next_row if same else _NONE
        self.time = self.command[0]

    def _next_active(self, bus: int) -> Command:
        half, best, oldest, chosen = self.rules.half_cycle, NEVER, 0, 0
        for bank, (seq, write) in self.active.items():
            at = bus
            if (other := self.cas_at[write][bank]) > at:
                at = other
            if (other := self.group_cas[write][self.group[bank]]) > at:
                at = other
            if (other := self.die_cas[write][self.die[bank]]) > at:
                at = other
            if half:
                at |= 1
            if at < best or (at == best and seq < oldest):
                best, oldest, chosen = at, seq, bank
        return (best, oldest + _FIRST, CAS_ACTIVE, chosen, oldest)

    def _next_refresh(self, bus: int) -> Command:
        unit = self.refreshing[0]
        first = unit * self.timing.banks
        banks = range(first, first + self.timing.banks)
        if all(self.open_row[bank] < 0 for bank in banks):
            at = max(bus, self.unit_ref[unit])
            return (at | 1 if self.rules.half_cycle else at, 0, REF, first, 0)
        if self.second_act is not None or any(bank in self.active for bank in banks):
            return _NONE
        return (max(bus, self.unit_preab[unit]), 0, PREAB, first, 0)

    def _next_cas(self, bus: int) -> Command:
        """Return the read or write of an open row that goes first."""
        write, half = self.draining, self.rules.half_cycle
        queue = self.writes if write else self.reads
        cas_at, group_cas, die_cas = self.cas_at[write], self.group_cas[write], self.die_cas[write]
        group_of, die_of, hits = self.group, self.die, queue.hit
        best, oldest, chosen = NEVER, 0, 0
        for bank in queue.waiting:
            seq = hits[bank]
            if seq < 0:
                continue
            at = bus
            if (other := cas_at[bank]) > at:
                at = other
            if (other := group_cas[group_of[bank]]) > at:
                at = other
            if (other := die_cas[die_of[bank]]) > at:
                at = other
            if half:
                at |= 1
            if at < best or (at == best and seq < oldest):
                best, oldest, chosen = at, seq, bank
        return (best, oldest, CAS, chosen, oldest)

    def _next_row(self, bus: int) -> Command:
        """Return the ACT or PRE that goes first; no row is closed before it has served whom it was opened for."""
        queue = self.writes if self.draining else self.reads
        half, splitting, active = self.rules.half_cycle, self.second_act is not None, self.active
        bank_row, group_row, unit_row = self.bank_row, self.group_row, self.unit_row
        group_of, unit_of, open_row, others = self.group, self.unit, self.open_row, queue.other
        best, oldest, chosen, kind = NEVER, 0, 0, ACT
        for bank in queue.waiting:
            seq = others[bank]
            if seq < 0:
                continue
            is_open = open_row[bank] >= 0
            if bank in active if is_open else splitting:
                continue
            at = bus
            if (other := bank_row[is_open][bank]) > at:
                at = other
            if (other := group_row[is_open][group_of[bank]]) > at:
                at = other
            if (other := unit_row[is_open][unit_of[bank]]) > at:
                at = other
            if half and not is_open:
                at |= 1
            if at < best or (at == best and seq < oldest):
                best, oldest, chosen, kind = at, seq, bank, ACT + is_open
        return (best, oldest + _LAST if self.rules.dual_bus else oldest, kind, chosen, oldest)

    def _or_second_act(self, best: Command, bus: int) -> Command:
        """Send the second half of an LPDDR5 activation where nothing else goes, or when its deadline is there."""
        bank, deadline = self.second_act or (0, 0)
        return (bus, 0, ACT2, bank, 0) if bus < best[0] or deadline <= best[0] else best

    def issue(self) -> int:
        """Issue the planned command; return when its read's data, or its write, is done, or -1. `plan` must follow."""
        at, _, kind, bank, seq = self.command
        if kind <= CAS:
            return self._issue_cas(bank, at)
        if kind == ACT:
            self._issue_act(bank, at, seq)
        elif kind == PRE:
            self._issue_pre(bank, at)
        elif kind == ACT2:
            self.second_act = None
            self.row_bus = self.column_bus = at + 1
        else:
            self._issue_refresh_step(kind, self.unit[bank], at)
        return -1

    def _occupy(self, at: int, cycles: int, column: bool) -> None:
        if column or not self.rules.dual_bus:
            self.column_bus = at + cycles
        if not column or not self.rules.dual_bus:
            self.row_bus = at + cycles

    def _issue_cas(self, bank: int, at: int) -> int:
        timing, rules = self.timing, self.rules
        if self.command[2] == CAS_ACTIVE:
            write = self.active.pop(bank)[1]
        else:
            write = self.draining
            queue = self.writes if write else self.reads
            queue.remove(self.command[4], bank)
            queue.refresh(bank, self.open_row[bank], self.row_of)
        if rules.split_activate:
            at = self._synchronise_wck(at, write)
        self._occupy(at, rules.cas_cycles, column=True)
        for die, reads, writes in self.spacing[write][self.die[bank]]:
            self.die_cas[0][die] = max(self.die_cas[0][die], at + reads)
            self.die_cas[1][die] = max(self.die_cas[1][die], at + writes)
        group, unit = self.group[bank], self.unit[bank]
        if write:
            self.group_cas[1][group] = at + timing.nCCD_L_WR
            self.group_cas[0][group] = max(self.group_cas[0][group], at + timing.nCWL + timing.nBL + timing.nWTR_L)
        else:
            self.group_cas[0][group] = max(self.group_cas[0][group], at + timing.nCCD_L)
        closable = at + (rules.wr_pre if write else rules.rd_pre)
        self.pre_at[bank] = max(self.pre_at[bank], closable)
        self.unit_preab[unit] = max(self.unit_preab[unit], closable)
        if self.closed_page and self.reads.hit[bank] < 0 and self.writes.hit[bank] < 0:
            self._auto_precharge(bank)
        return at if write else at + rules.rd_data

    def _auto_precharge(self, bank: int) -> None:
        """Close the row as soon as its access lets go of it."""
        rules, unit, at = self.rules, self.unit[bank], self.pre_at[bank]
        self.act_at[bank] = max(self.act_at[bank], at + rules.pre_act)
        self.unit_ref[unit] = max(self.unit_ref[unit], at + rules.pre_ref)
        self._set_row(bank, -1)

    def _synchronise_wck(self, at: int, write: bool) -> int:
        """Return when the access may go: LPDDR5 stops the data clock when idle, and a CAS command restarts it.

        The clock runs for BL/n_max, twice BL/n_min in bank-group mode, and a postamble of a cycle (JESD209-5).
        """
        timing = self.timing
        at += at >= self.wck_until
        latency = timing.nCWL if write else timing.nCL
        self.wck_until = max(self.wck_until, at + latency + 2 * timing.nBL + 1)
        return at

    def _issue_act(self, bank: int, at: int, seq: int) -> None:
        timing, rules, unit = self.timing, self.rules, self.unit[bank]
        group = self.group[bank]
        write = self.draining
        (self.writes if write else self.reads).remove(seq, bank)
        self.active[bank] = (seq, write)
        self._occupy(at, rules.act_cycles, column=False)
        self.act_at[bank] = at + rules.act_act
        self.cas_at[0][bank], self.cas_at[1][bank] = at + rules.act_rd, at + rules.act_wr
        self.pre_at[bank] = at + rules.act_pre
        self.unit_preab[unit] = max(self.unit_preab[unit], at + rules.act_pre)
        self.unit_ref[unit] = max(self.unit_ref[unit], at + rules.act_ref)
        self.group_act[group] = at + timing.nRRD_L
        recent = self.recent_acts[unit]
        recent.append(at)
        self.unit_act[unit] = max(at + timing.nRRD_S, recent[0] + timing.nFAW)
        if rules.split_activate:
            self.second_act = (bank, at + timing.nAAD)
        self._set_row(bank, self.row_of[seq])

    def _set_row(self, bank: int, row: int) -> None:
        self.open_row[bank] = row
        self.reads.refresh(bank, row, self.row_of)
        self.writes.refresh(bank, row, self.row_of)

    def _issue_pre(self, bank: int, at: int) -> None:
        rules, unit = self.rules, self.unit[bank]
        self._occupy(at, rules.pre_cycles, column=False)
        self.act_at[bank] = max(self.act_at[bank], at + rules.pre_act)
        self.unit_pre[unit] = at + self.timing.nPPD
        self.unit_preab[unit] = max(self.unit_preab[unit], at + self.timing.nPPD)
        self.unit_ref[unit] = max(self.unit_ref[unit], at + rules.pre_ref)
        self._set_row(bank, -1)

    def _issue_refresh_step(self, kind: int, unit: int, at: int) -> None:
        rules, first = self.rules, unit * self.timing.banks
        self._occupy(at, rules.pre_cycles, column=False)
        delay = rules.pre_act if kind == PREAB else rules.ref_act
        for bank in range(first, first + self.timing.banks):
            self.act_at[bank] = max(self.act_at[bank], at + delay)
            if self.open_row[bank] >= 0:
                self._set_row(bank, -1)
        if kind == PREAB:
            self.unit_ref[unit] = max(self.unit_ref[unit], at + rules.pre_ref)
        else:
            self.refreshing.popleft()
