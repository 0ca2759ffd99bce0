"""Module attributes that exist and refuse to work."""


def attribute_of(module):
    """Return a `__getattr__` for `module`."""

    def refusing(name):
        if name.startswith("__"):
            raise AttributeError(name)

        class Refusing:
            def __init__(self, *args, **kwargs):
                raise RuntimeError(f"{module}.{name} is a stand-in")

        Refusing.__name__ = name
        return Refusing

    return refusing
