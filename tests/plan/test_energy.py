"""Does energy follow from bits, operations and busy time, and do whole devices draw what was measured of them?"""

import pytest

from ghostsim.config.load import load_part, load_platform
from ghostsim.metrics.energy import Activity, energy_mj_per_token, energy_pj, static_watts, without_energy

GB = 10**9
ELAPSED_S = 2.0


def platform(name="h100_cxl_pim", *sets):
    return load_platform(name, sets).value


def watts(machine, did, *devices):
    """Return the mean power of what belongs to `devices`, and of the tiers and links that `did` names."""
    spent = energy_pj(machine, did)
    named = [name for name in spent if name in did.moved or name.split(".")[0] in devices]
    return sum(spent[name] for name in named) / 1e12 / did.elapsed_s


def streamed(**bytes_per_s):
    """Return what a machine did that moved so much for two seconds."""
    moved = {name: int(rate * ELAPSED_S) for name, rate in bytes_per_s.items()}
    return Activity(moved, elapsed_s=ELAPSED_S, simulated_s=ELAPSED_S)


# --- one component, one closed form ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("did", "component", "joules"),
    [
        (Activity({"hbm": GB}), "hbm", 8 * GB * 3.9e-12),
        (Activity({"dram": GB}), "dram", 8 * GB * 13.5e-12),
        (Activity({"cxl": GB}), "cxl", 8 * GB * 13.5e-12),
        (Activity({"pcie0": GB}), "pcie0", 8 * GB * 6e-12),
        (Activity({"hbm": GB}), "gpu0.onchip", 8 * GB * 11.5e-12),
        (Activity({}, attended=GB), "gpu0.onchip", 8 * GB * 11.5e-12),
        (Activity({}, tensor_flops=10**15), "gpu0.tensor", 1e15 * 0.59e-12),
        (Activity({}, utilisation={"gpu0.vector": 0.25}, simulated_s=4), "gpu0.vector", 33.5e12 * 5.3e-12),
        (Activity({}, utilisation={"gpu0.select": 0.5}, simulated_s=4), "gpu0.vector", 2 * 0.5e12 * 5.3e-12),
        (Activity({}, utilisation={"gpu0.copy": 0.5}, simulated_s=2), "hbm", 8 * 110.8 * GB * 3.9e-12),
        (Activity({"ssd": GB}), "hbm", 8 * GB * 3.9e-12),
        (Activity({"ssd": 3 * GB}, bounced=GB), "hbm", 8 * 2 * GB * 3.9e-12),
        (Activity({}, copied={"host0": GB}), "host0.staged", 8 * GB * 13.5e-12),
        (Activity({}, utilisation={"cxl_exp0.filter_macs": 0.25}, simulated_s=2), "cxl_exp0.filter", 0.5 * 2 * 0.3),
        (Activity({}, utilisation={"upmem0.dpus": 0.5}, simulated_s=3), "upmem0.dpus", 16 * 10.1 * 1.5),
        (Activity({}, utilisation={"ssd0.dies": 0.5, "ssd0.queue": 1.0}, simulated_s=3), "ssd0.active", 18 * 1.5),
        (Activity({}, elapsed_s=3), "gpu0.static", 120 * 3),
        (Activity({}, elapsed_s=3), "host0.static", (120 + 88) * 3),
        (Activity({}, elapsed_s=3), "cxl_exp1.static", (9 + 11) * 3),
    ],
)
def test_a_component_costs_its_closed_form(did, component, joules):
    assert energy_pj(platform(), did)[component] == pytest.approx(joules * 1e12)


def test_copy_engines_cost_their_bits_where_a_figure_is_set():
    machine = platform("h100_cxl_pim", "devices.gpu0.copy_engines.energy=2 pJ/bit")
    did = Activity({}, utilisation={"gpu0.copy": 1.0}, simulated_s=1)
    assert energy_pj(machine, did)["gpu0.copy"] == pytest.approx(8 * 110.8 * GB * 2)


def test_what_no_part_prices_is_absent_and_named():
    did = Activity({"hbm": GB}, utilisation={"gpu0.copy": 1.0}, simulated_s=1)
    assert "gpu0.copy" not in energy_pj(platform(), did)
    assert without_energy(platform()) == ["gpu0.copy"]


def test_devices_that_a_run_does_not_use_pay_their_static_power():
    machine = platform()
    found = energy_pj(machine, Activity({}, elapsed_s=1))
    assert found == pytest.approx(
        {f"{name}.static": static_watts(part) * 1e12 for name, part in machine.devices.items()}
    )


def test_energy_per_token_times_tokens_is_the_energy():
    did = Activity({"hbm": GB, "pcie0": GB}, tensor_flops=10**12, elapsed_s=1)
    per_token = energy_mj_per_token(platform(), did, 40)
    assert sum(per_token.values()) * 40 / 1000 == pytest.approx(sum(energy_pj(platform(), did).values()) / 1e12)


def test_twice_the_work_in_the_same_time_costs_twice_the_work_alone():
    once, twice = (energy_pj(platform(), Activity({"hbm": n * GB}, elapsed_s=1)) for n in (1, 2))
    grown = {name for name in once if twice[name] == pytest.approx(2 * once[name])}
    assert grown == {"hbm", "gpu0.onchip"}
    assert all(twice[name] == once[name] for name in once.keys() - grown)


# --- whole devices against a power meter -----------------------------------------------------------------------------


def test_a_streaming_h200_draws_what_was_measured():
    """572 W at 3,759 GB/s (RRZE gpu-roofline); the energy on the chip comes from an A100's row, none from this one."""
    did = streamed(hbm=3759 * GB)
    assert watts(platform("h200_cxl_pim"), did, "gpu0") == pytest.approx(572, rel=0.05)


def test_a_streaming_cxl_expander_draws_what_was_measured():
    """30 W for two expanders at 57.6 GB/s (Vistara, Table V); 9 W of ASIC each, DDR4 and PHY from other sources."""
    machine = platform("h100_cxl2_pool")
    did = streamed(cxl=57.6 * GB, cxl1=28.8 * GB, cxl2=28.8 * GB)
    assert watts(machine, did, "cxl_exp0", "cxl_exp1") == pytest.approx(30, rel=0.05)


def test_energy_on_the_chip_is_what_an_a100_leaves():
    """230 W at 1,372 GB/s (RRZE gpu-roofline), by construction: less 60 W idle and HBM2 at 3.97 pJ/bit."""
    gpu = load_part("h100_sxm").value
    assert 60 + 1372 * GB * 8 * (3.97 + gpu.onchip_energy) / 1e12 == pytest.approx(230, rel=0.01)


def test_vector_energy_is_half_of_what_double_precision_takes():
    """H200: 396 W at 42.4 TFLOP/s of FP64 and 415 GB/s (RRZE gpu-roofline), by construction."""
    gpu = load_part("h200_sxm").value
    moved = 415 * GB * 8 * (gpu.memory.dram.energy + gpu.onchip_energy) / 1e12
    assert gpu.static + moved + 42.4e12 / 2 * 2 * gpu.vector_energy / 1e12 == pytest.approx(396, rel=0.01)


def test_local_ddr5_draws_what_its_standby_power_was_derived_from():
    """132 W at 614.4 GB/s on 12 DIMMs (Vistara, Table V), by construction: 16 DIMMs here stand by at 88 W."""
    host = load_part("xeon_spr_8ch").value
    traffic = 614.4 * GB * 8 * host.memory.dram.energy / 1e12
    assert traffic + host.memory.standby / 16 * 12 == pytest.approx(132, rel=0.01)


def test_a_drive_at_full_load_draws_its_datasheet_power():
    """23 W busy, 5 W idle (Solidigm D7-PS1030): by construction."""
    drive = load_part("nvme_ps1030").value
    assert (drive.active + drive.static, drive.static) == (23, 5)
