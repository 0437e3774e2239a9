"""The error tree: the docstring draws it as it is, and shard and key survive the way between processes."""

from __future__ import annotations

import copy
import inspect
import pickle  # noqa: TID251 - Ray moves exceptions between processes this way
import re

import pytest

from discernible import errors

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, errors.DiscernibleError)
}


def tree_in_docstring() -> dict[str, tuple[str | None, str | None]]:
    """Each class of the drawn tree: its parent there, and the builtin named in brackets."""
    parents: dict[str, tuple[str | None, str | None]] = {}
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ([│├└─ ]*)(\w+Error)(?: \((\w+)\))?(?:\s{2,}|$)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        path = [entry for entry in path if entry[0] < depth]
        parents[match[2]] = (path[-1][1] if path else None, match[3])
        path.append((depth, match[2]))
    return parents


def test_docstring_draws_the_tree_as_it_is() -> None:
    drawn = tree_in_docstring()
    assert set(drawn) == set(CLASSES)
    for name, (parent, builtin) in drawn.items():
        bases = tuple(base.__name__ for base in CLASSES[name].__bases__)
        expected = ("Exception",) if parent is None else tuple(base for base in (parent, builtin) if base)
        assert bases == expected, name


def test_all_names_every_error_and_nothing_else() -> None:
    assert sorted(errors.__all__) == sorted(CLASSES)


def test_every_error_says_what_it_means() -> None:
    for name, cls in CLASSES.items():
        assert cls.__doc__, name
        assert cls.__doc__.strip().endswith("."), name


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_message_shard_and_key_survive_pickling_and_copying(name: str) -> None:
    original = CLASSES[name]("what, why, what to do", shard="00007", key="cats/tabby.1")
    for again in (pickle.loads(pickle.dumps(original)), copy.copy(original)):
        assert type(again) is type(original)
        assert (again.message, again.shard, again.key) == ("what, why, what to do", "00007", "cats/tabby.1")
        assert str(again) == str(original)


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ({}, "unreadable"),
        ({"shard": "00007"}, "unreadable [shard 00007]"),
        ({"key": "a/b"}, "unreadable [key a/b]"),
        ({"shard": "00007", "key": "a/b"}, "unreadable [shard 00007, key a/b]"),
    ],
)
def test_str_names_the_place(where: dict[str, str], shown: str) -> None:
    assert str(errors.ImageUnreadableError("unreadable", **where)) == shown


def test_errors_cross_a_ray_task(local_ray: None) -> None:
    import ray

    @ray.remote(max_retries=0)
    def fail() -> None:
        raise errors.ImageTooLargeError("too large", shard="00001", key="huge")

    with pytest.raises(errors.ImageTooLargeError) as caught:
        ray.get(fail.remote())
    cause = caught.value.cause if isinstance(caught.value, ray.exceptions.RayTaskError) else caught.value
    assert (cause.shard, cause.key) == ("00001", "huge")
