"""The stand-in has the name that Dynamo imports, and no other."""

from demo.dynamo.worker import stand_in


def test_the_stand_in_has_one_name():
    added = set(vars(stand_in())) - set(vars(type(stand_in())("other")))
    assert added == {"smart_resize"}
