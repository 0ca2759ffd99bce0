from flexkv_connectors.prometheus import MetricFamilies
from flexkv_core.metrics import METRICS


class Family:
    """A metric of `prometheus_client`, and its series by their labels."""

    def __init__(self, name, documentation, labelnames):
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
