"""Do the DRAM parts of the catalogue say the same as the timing table of the simulators?"""

from __future__ import annotations

import csv
import re
from dataclasses import fields

import pytest
import yaml

from ghostsim import bundled
from ghostsim.config.hardware import Dram, cycles
from ghostsim.timing.dram_table import load_timings
from ghostsim.timing.dram_timing import DramTiming

FOLDER = bundled.folder("hwmodels") / "memory"
NAMES = sorted(load_timings())
OTHERS = sorted({path.stem for path in FOLDER.glob("*.yaml")} - set(NAMES))
JEDEC = {
    "tRCD": "nRCD_RD",
    **{
        f"t{name}": f"n{name}"
        for name in (
            *("CL", "CWL", "RCD_WR", "RP", "RAS", "RC", "WR", "RTP", "CCD_S", "CCD_L", "CCD_S_WR", "CCD_L_WR"),
            *("CCD_R", "RRD_S", "RRD_L", "WTR_S", "WTR_L", "RTW", "FAW", "PPD", "CS", "RFC", "REFI"),
        )
    },
}
GEOMETRY = (
    *("access_bytes", "subchannels", "ranks", "pseudochannels", "stack_ids"),
    *("bankgroups", "banks_per_group", "rows", "row_bytes"),
)


def read_part(name: str) -> Dram:
    return Dram.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def as_timing(part: Dram) -> DramTiming:
    clock_ps = 2e12 / part.data_rate if part.timing.tCK is None else float(part.timing.tCK)
    given = {field: getattr(part.timing, jedec) for jedec, field in JEDEC.items()}
    counts = {field: cycles(value, clock_ps) for field, value in given.items() if value is not None}
    geometry = {name: getattr(part.geometry, name) for name in GEOMETRY}
    return DramTiming(standard=part.standard, tCK_ps=clock_ps, nBL=part.timing.nBL, **counts, **geometry)


def queue_sizes(name: str) -> set[tuple[int, int]]:
    path = bundled.folder("hwmodels") / "reference" / "dram_bandwidth.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["part"] == name]
    return {(int(row["read_queue"]), int(row["write_queue"])) for row in rows}


def test_every_row_of_the_table_has_a_part():
    assert set(NAMES) <= {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("name", OTHERS)
def test_a_part_beside_the_table_says_what_its_timings_come_from(name):
    source = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))["source"]
    origin = re.match(r"derived from (\w+) \(hwmodels/reference/dram_timings.csv\)", source)
    assert source.startswith("recalled: ") or origin[1] in NAMES


@pytest.mark.parametrize("name", OTHERS)
def test_a_derived_speed_bin_keeps_the_durations_of_its_origin(name):
    """Rows, columns and precharges take as long as at the speed that was simulated, but for one clock of rounding."""
    source = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))["source"]
    if source.startswith("derived from "):
        origin, part = load_timings()[source.split()[2]], as_timing(read_part(name))
        for field in ("nCL", "nRCD_RD", "nRP", "nRAS", "nRC", "nFAW", "nREFI"):
            kept_ps = getattr(origin, field) * origin.tCK_ps
            assert kept_ps * 0.999 <= getattr(part, field) * part.tCK_ps < kept_ps + 1.001 * part.tCK_ps


@pytest.mark.parametrize("name", NAMES)
def test_part_equals_its_row(name):
    row, part = load_timings()[name], as_timing(read_part(name))
    differing = {
        field.name: (getattr(row, field.name), getattr(part, field.name))
        for field in fields(DramTiming)
        if field.name not in {"standard", "tCK_ps"} and getattr(row, field.name) != getattr(part, field.name)
    }
    assert not differing
    assert part.family == row.family
    assert part.tCK_ps == pytest.approx(row.tCK_ps, rel=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_part_survives_being_written_and_read(name):
    part = read_part(name)
    again = Dram.model_validate(yaml.safe_load(yaml.safe_dump(part.model_dump(mode="json", by_alias=True))))
    assert again == part


@pytest.mark.parametrize("name", NAMES)
def test_queues_are_those_of_the_simulated_rows(name):
    part = read_part(name)
    simulated = queue_sizes(name)
    assert not simulated or (part.geometry.read_queue, part.geometry.write_queue) in simulated


def test_a_changed_cycle_count_is_noticed():
    document = yaml.safe_load((FOLDER / f"{NAMES[0]}.yaml").read_text(encoding="utf-8"))
    document["timing"]["tFAW"] = "35 nCK"
    assert as_timing(Dram.model_validate(document)) != as_timing(read_part(NAMES[0]))
