"""A module's text becomes one line a member, whatever way it is written."""

import textwrap

import pytest

from compat_tests.contract.interface import annotation, read_module


def read(source, name="engine.mod", *, is_package=False):
    return read_module(textwrap.dedent(source), name, is_package=is_package)


def plain(members):
    return {name: text.partition("  # body ")[0] for name, text in members.items()}


def test_members_read_like_their_definitions():
    module = read("""
        class Base(ABC):
            count: int = 3
            kind = "x"
            def __init__(self, size: int):
                self.size = size
            @abstractmethod
            def load(self, key: "str", *, late=False) -> "bool": ...
            @property
            def ready(self) -> bool: ...
            @classmethod
            def make(cls): ...
    """)
    assert module["classes"]["Base"]["bases"] == ["ABC"]
    assert plain(module["classes"]["Base"]["members"]) == {
        "count": "field: int = 3",
        "kind": "value = 'x'",
        "size": "attribute: int",
        "__init__": "def (self, size: int)",
        "load": "abstract def (self, key: str, *, late=False) -> bool",
        "ready": "property def (self) -> bool",
        "make": "class def (cls)",
    }


def test_a_literal_keeps_its_quotes():
    module = read("class C:\n    role: Literal['a']\n")
    assert module["classes"]["C"]["members"] == {"role": "field: Literal['a']"}


def test_definitions_under_if_and_try_are_found():
    module = read("""
        if TYPE_CHECKING:
            from a import B
        try:
            from c import D
        except ImportError:
            class D: ...
    """)
    assert module["imports"] == {"B": "a:B", "D": "c:D"}
    assert set(module["classes"]) == {"D"}


@pytest.mark.parametrize(
    ("is_package", "source", "target"),
    [
        (False, "from .base import A", "engine.base:A"),
        (True, "from .base import A", "engine.mod.base:A"),
        (False, "from ..base import A", "base:A"),
        (False, "from base import X as A", "base:X"),
    ],
)
def test_relative_imports_are_resolved(is_package, source, target):
    assert read(source, is_package=is_package)["imports"] == {"A": target}


def test_calls_of_hooks_are_in_order_and_say_what_is_conditional():
    module = read("""
        class Runner:
            def step(self):
                connector.bind(x)
                if sync:
                    self.kv_connector.load(context, request_ids=ids)
                yield output
                other.load()
    """)
    assert module["calls"] == {"Runner.step": ["bind()", "if load(request_ids)", "yield"]}


def test_a_body_has_a_digest_that_documentation_does_not_change():
    def digest(body):
        return read(f"def f():\n{body}")["functions"]["f"]

    assert digest("    return 1\n") == digest("    'said.'\n    return 1  # why\n")
    assert digest("    return 1\n") != digest("    return 2\n")


@pytest.mark.parametrize(
    ("member", "typed"),
    [
        ("field: int = 3", "int"),
        ("attribute: Sequence[A]", "Sequence[A]"),
        ("attribute", ""),
        ("value = (0, 1)", ""),
        ("abstract property def (self) -> A | None", "A | None"),
        ("def (self)", ""),
    ],
)
def test_what_a_member_gives(member, typed):
    assert annotation(member) == typed
