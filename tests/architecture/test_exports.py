"""Every public module says what it exports: `__all__` is complete and sorted."""

import ast

PRIVATE_BY_NATURE = ("TypeVar", "ParamSpec", "getLogger")


def is_public(path):
    parts = path.removesuffix(".py").split("/")
    return not any(part.startswith("_") and part != "__init__" for part in parts)


def bound_by(node):
    """Return the names that a top-level statement defines; imports are not definitions."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(getattr(node, "value", None), ast.Call):
        made_by = getattr(node.value.func, "attr", None) or getattr(node.value.func, "id", None)
        if made_by in PRIVATE_BY_NATURE:
            return []
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def reexported_by(node):
    """Return the names that a package takes from its own modules."""
    own = isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flexkv_")
    return [alias.asname or alias.name for alias in node.names] if own else []


def is_another_place_of(body):
    """Whether a module is only the name under which users write what lies elsewhere."""
    own = [node for node in body[1:] if not isinstance(node, ast.ImportFrom)]
    return [name for node in own for name in bound_by(node)] == ["__all__"]


def defined_in(path, body):
    names = {name for node in body for name in bound_by(node)}
    if path.endswith("__init__.py") or is_another_place_of(body):
        names |= {name for node in body for name in reexported_by(node)}
    return names


def exported_by(body):
    """Return `__all__` as it is written; a module without public names needs none."""
    for node in body:
        if isinstance(node, ast.Assign) and bound_by(node) == ["__all__"]:
            return ast.literal_eval(node.value)
    return []


def missing_and_unknown(path, tree):
    """Return what `__all__` lacks, and what it names that the module does not define."""
    defined = defined_in(path, tree.body)
    public = {name for name in defined if not name.startswith("_")}
    exported = set(exported_by(tree.body))
    lazy = "__getattr__" in defined
    return public - exported, set() if lazy else exported - public


def order(name):
    """Constants first, then classes, then functions: the order that the linter keeps."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_all_is_complete(trees):
    wrong = {path: missing_and_unknown(path, tree) for path, tree in trees.items()}
    assert {path: sets for path, sets in wrong.items() if is_public(path) and any(sets)} == {}


def test_all_is_sorted(trees):
    exports = {path: exported_by(tree.body) for path, tree in trees.items()}
    unsorted = {p: names for p, names in exports.items() if names != sorted(set(names), key=order)}
    assert unsorted == {}


def test_a_forgotten_name_is_seen():
    tree = ast.parse("__all__ = ['gone']\nimport os\nA: int = 1\ndef f(): ...\nclass _B: ...\n")
    assert missing_and_unknown("package/module.py", tree) == ({"A", "f"}, {"gone"})


def test_a_lazy_name_is_not_unknown():
    tree = ast.parse("__all__ = ['later']\ndef __getattr__(name): ...\n")
    assert missing_and_unknown("package/__init__.py", tree) == (set(), set())
