"""Is a cost shown where all devices state one, and who states none where some do?"""

import json
import re

import pytest

from ghostsim.config.cost import platform_cost

GPU = "platform.devices.gpu0.cost=30000 USD"
HOST = "platform.devices.host0.cost=10000 USD"


def test_costs_add_up_over_devices_and_the_links_that_state_one():
    devices = {"gpu": {"cost": {"value": "20 USD", "source": "x", "confidence": "assumed"}}, "host": {"cost": "5 USD"}}
    found = platform_cost({"devices": devices, "links": {"a": {"cost": "2 USD"}, "b": {}}})
    assert (found.usd, found.unstated) == (27, ())


def test_a_platform_without_costs_has_none():
    assert platform_cost({"devices": {"gpu": {"cost": None}}}) is None


def test_show_says_which_devices_state_none(ghostsim, tmp_path):
    done = ghostsim("show", "h100_hbm_only", "--set", "devices.gpu0.cost=30000 USD", cwd=tmp_path)
    assert "cost: 30000 USD without host0, whose cost is not stated" in done.stderr


def test_a_run_shows_tokens_per_second_and_dollar(ghostsim, tmp_path):
    done = ghostsim("run", "dense_hbm", "--set", GPU, "--set", HOST, "--out", "run", cwd=tmp_path)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    runs = metrics["runs"]
    for label, each in runs.items():
        line = re.search(rf"cost of {label}: 40000 USD for the platform: (\S+)\s+tokens/s", done.stderr)
        assert float(line[1]) == pytest.approx(each["tokens_per_s"] / 40_000, rel=0.01)
    assert "Tokens per second and 1,000 USD" in (tmp_path / "run/report.html").read_text()
