"""Tells objects that they are in a forked child."""

import os
import weakref
from typing import Any, Dict

_objects: Dict[int, "weakref.ref[Any]"] = {}


def watch(watched: Any) -> None:
    """Calls ``watched.after_fork()`` in each child that is forked while the object exists."""
    number = id(watched)

    def forget(_: Any, number: int = number) -> None:
        _objects.pop(number, None)

    _objects[number] = weakref.ref(watched, forget)


def _in_child() -> None:
    for reference in list(_objects.values()):
        watched = reference()
        if watched is not None:
            watched.after_fork()


os.register_at_fork(after_in_child=_in_child)
