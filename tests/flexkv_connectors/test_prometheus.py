"""The metrics as an engine's processes show them."""

import json
import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from flexkv_connectors.prometheus import MetricFamilies
from flexkv_core.metrics import METRICS

PROCESS = """
import json, sys
from prometheus_client import Counter, Gauge
from flexkv_connectors.prometheus import MetricFamilies
families = MetricFamilies(Counter, Gauge, ["engine"])
families.begin([0])
families.note(json.loads(sys.argv[1]), [0])
"""
"""One of several API servers of an engine, which has been told some changes."""


class Family:
    """A metric of `prometheus_client`, and its series by their labels."""

    def __init__(self, name, documentation, labelnames, **_):
        self.name, self.documentation, self.labelnames = name, documentation, labelnames
        self.series = {}

    def labels(self, *values):
        return self.series.setdefault(values, Series())


class Series:
    def __init__(self):
        self.value = 0

    def inc(self, value):
        self.value += value

    def set(self, value):
        self.value = value


class Registry:
    def __init__(self):
        self.counters, self.gauges = {}, {}
        makers = self.maker(self.counters), self.maker(self.gauges)
        self.families = MetricFamilies(*makers, ["rank"])

    def maker(self, into):
        def make(**arguments):
            family = Family(**arguments)
            return into.setdefault(family.name, family)

        return make


def test_every_row_is_registered_as_its_kind_with_its_help():
    registry = Registry()
    for metric in METRICS.values():
        family = {"counter": registry.counters, "gauge": registry.gauges}[metric.kind]
        registered = family[f"flexkv:{metric.name}"]
        assert (registered.documentation, registered.labelnames) == (metric.help, ["rank"])


def test_counters_add_up_and_gauges_are_replaced():
    registry = Registry()
    for _ in range(2):
        registry.families.note({"load_bytes": 5, "ssd_used_blocks": 7}, [0])
    assert registry.counters["flexkv:load_bytes"].series[0,].value == 10
    assert registry.gauges["flexkv:ssd_used_blocks"].series[0,].value == 7


def test_series_are_apart_and_can_be_shown_before_anything_happens():
    registry = Registry()
    registry.families.begin([0])
    registry.families.note({"load_bytes": 5}, [1])
    values = {
        labels: s.value for labels, s in registry.counters["flexkv:load_bytes"].series.items()
    }
    assert values == {(0,): 0, (1,): 5}


@pytest.fixture
def shown(tmp_path):
    """Return a function that lets processes note changes, and returns what `/metrics` shows."""

    def run(*changes_of_processes):
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        for changes in changes_of_processes:
            command = [sys.executable, "-c", PROCESS, json.dumps(changes)]
            subprocess.run(command, env=environment, check=True)
        collector = MultiProcessCollector(CollectorRegistry(), path=str(tmp_path))
        return {
            (sample.name, *sample.labels.items()): sample.value
            for metric in collector.collect()
            for sample in metric.samples
        }

    return run


@pytest.mark.parametrize(
    ("told", "value"),
    [([{"ssd_used_blocks": 7}, {"ssd_used_blocks": 3}], 3), ([{"ssd_used_blocks": 7}, {}], 7)],
)
def test_of_several_processes_a_gauge_shows_what_any_was_told_last(shown, told, value):
    samples = shown(*told)
    gauges = {key: value for key, value in samples.items() if key[0] == "flexkv:ssd_used_blocks"}
    assert gauges == {("flexkv:ssd_used_blocks", ("engine", "0")): value}


def test_of_several_processes_a_counter_shows_the_sum(shown):
    samples = shown({"load_bytes": 5}, {"load_bytes": 2})
    assert samples["flexkv:load_bytes_total", ("engine", "0")] == 7
