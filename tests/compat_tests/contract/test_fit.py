"""Needs are read from our source as it is written, and followed through the engine's types."""

import textwrap

import pytest

from compat_tests.contract.engines import Engine
from compat_tests.contract.fit import Fit
from compat_tests.contract.library import Library
from compat_tests.contract.needs import needs_of

TOY = Engine(name="toy", distributions=("toy",), package="toy", ours="ours", watched=("toy.api",))

API = """
    class Pool:
        def evict(self, ids: list[int]) -> int: ...
    class Group:
        size: int
    class Config:
        pool: Pool | None
        groups: list[Group]
        by_name: dict[str, Group]
    class Base(ABC):
        def __init__(self):
            self.role = 1
        @abstractmethod
        def load(self, config: Config): ...
        def save(self): ...
"""


@pytest.fixture
def fit(tmp_path):
    """Return a function from our source, and the engine's, to what is broken."""

    def compare(ours, api=API):
        for name, source in (("toy/api.py", api), ("toy/__init__.py", ""), ("ours/one.py", ours)):
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(source))
        return Fit(TOY, needs_of(TOY, tmp_path), Library(tmp_path))

    return compare


def broken(fit):
    return [(one.place, one.text) for one in fit.findings if one.is_broken]


HEAD = "from toy.api import Base, Config\n"


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        ("return config.gone", "Config has no gone"),
        ("return config.pool.gone", "Pool has no gone"),
        ("p = config.pool\n    return p.gone", "Pool has no gone"),
        ("p, q = config.pool, 1\n    return p.gone", "Pool has no gone"),
        ("(g,) = config.groups\n    return g.gone", "Group has no gone"),
        ("return config.groups[0].gone", "Group has no gone"),
        ("return config.by_name['a'].gone", "Group has no gone"),
        ("return [g.gone for g in config.groups]", "Group has no gone"),
        ("for g in config.groups:\n        g.gone", "Group has no gone"),
        ("return (lambda: config.pool.gone)()", "Pool has no gone"),
        ("return max(1, config.pool.gone)", "Pool has no gone"),
        ("return f'{config.gone}'", "Config has no gone"),
        ("return getattr(config, 'gone')", "Config has no gone"),
        ("if (p := config.pool): return p.gone", "Pool has no gone"),
        ("config.pool.evict()", "Pool.evict: wants ids as well"),
        ("config.pool.evict([], 1)", "Pool.evict: takes 1 arguments by position, we pass 2"),
        ("config.pool.evict(ids=[], late=1)", "Pool.evict: takes no late"),
        ("return helper(config).gone", "Group has no gone"),
    ],
)
def test_what_is_missing_is_found_however_it_is_reached(fit, body, missing):
    helper = "\ndef helper(config: Config) -> 'Group': ...\n"
    source = f"{HEAD}from toy.api import Group\n\ndef use(config: Config):\n    {body}\n{helper}"
    [(place, text)] = broken(fit(source))
    assert place.startswith("ours/one.py:")
    assert text == missing


@pytest.mark.parametrize(
    "body",
    [
        "return config.pool.evict([1])",
        "return [group.size for group in config.groups]",
        "return config.groups.append",
        "return unknown.gone",
        "config = other()\n    return config.gone",
    ],
)
def test_what_is_there_or_not_known_is_not_reported(fit, body):
    assert broken(fit(f"{HEAD}\ndef use(config: Config):\n    {body}\n")) == []


@pytest.mark.parametrize(
    "body",
    [
        "return getattr(config, 'gone', None)",
        "if hasattr(config, 'gone'):\n        return config.gone",
    ],
)
def test_what_the_code_looks_for_first_is_a_note(fit, body):
    result = fit(f"{HEAD}\ndef use(config: Config):\n    {body}\n")
    assert broken(result) == []
    assert "Config has no gone" in {one.text for one in result.findings}


def test_findings_of_one_line_come_in_the_same_order_in_every_run(fit):
    names = "hgbadcfe"
    members = ", ".join(f"config.{name}" for name in names)
    result = fit(f"{HEAD}\ndef use(config: Config):\n    return {members}\n")
    assert [one.text[-1] for one in result.findings] == sorted(names)


def test_an_import_that_is_caught_is_a_note(fit):
    result = fit("try:\n    from toy.api import Gone\nexcept ImportError:\n    Gone = None\n")
    assert broken(result) == []
    assert [one.text for one in result.findings] == ["there is no toy.api.Gone"]


def test_an_import_for_types_alone_is_not_needed(fit):
    assert fit("if TYPE_CHECKING:\n    from toy.api import Gone\n").findings == []


def test_a_missing_import_names_its_line(fit):
    assert broken(fit("\nfrom toy.gone import A\n")) == [
        ("ours/one.py:2", "there is no toy.gone.A")
    ]


OURS = f"""{HEAD}
class Ours(Base):
    @override
    def load(self, config: Config):
        return self.role
    @override
    def later(self):
        from toy.later import A
"""


def test_a_hook_of_newer_versions_and_what_it_imports_are_notes(fit):
    result = fit(OURS)
    assert broken(result) == []
    assert {one.text for one in result.findings} == {
        "Base has no hook later yet",
        "there is no toy.later.A: only later needs it",
    }


def test_an_attribute_of_the_base_class_is_needed(fit):
    result = fit(OURS, API.replace("self.role = 1", "self.kind = 1"))
    assert broken(result) == [("ours/one.py:6", "Ours has no role")]


def test_uses_name_every_place(fit):
    uses = fit(OURS).uses
    assert uses["toy.api.Base.load"] == {"ours/one.py:5"}
    assert uses["toy.api.Base.role"] == {"ours/one.py:6"}
    assert "toy.api.Base.save" not in uses


def test_a_class_that_stands_for_others_need_not_have_their_hooks(fit):
    ours = """
        from toy.api import Base
        class One(Base):
            def __new__(cls) -> Base:
                return make()
    """
    assert broken(fit(ours)) == []
    assert broken(fit(ours.replace("-> Base", "-> One | Base"))) == [
        ("ours/one.py:3", "Base.load is abstract and not overridden")
    ]
