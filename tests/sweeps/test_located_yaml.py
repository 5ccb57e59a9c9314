"""YAML as people mean it: 1.2 scalars, no key twice, and every complaint with its line."""

import pytest

from sweeps.located import SweepError, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2.5e9", 2.5e9),
        ("1e18", 1e18),
        ("010", 10),
        ("0x10", 16),
        ("no", "no"),
        ("on", "on"),
        ("12:00:00", "12:00:00"),
        ("2001-01-01", "2001-01-01"),
        ("true", True),
        ("~", None),
        ("'1'", "1"),
    ],
)
def test_scalars_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    found = parse(f"key: {text}", "f").value["key"]
    assert (found, type(found)) == (value, type(value))


def test_every_repeated_key_is_named_with_both_lines() -> None:
    with pytest.raises(SweepError) as error:
        parse("a: 1\nb: {c: 1, c: 2}\na: 2\n", "s.yaml")
    assert [str(problem) for problem in error.value.problems] == [
        "s.yaml:2: `c` is given twice, first in line 2",
        "s.yaml:3: `a` is given twice, first in line 1",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: [1, 2\nc: 3", 3),
        ("a: .nan", 1),
        ("a: 1\nb: .inf", 2),
        ("a: &x [*x]", 1),
        ("a: !!python/object:os.system x", 1),
        ("\x00", 1),
        ("a: *unknown", 1),
        ("? [1]\n: 2", 1),
        ("a: 1\n---\nb: 2", 2),
        ("a: !!int word", 1),
    ],
)
def test_what_is_not_a_plain_document_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(SweepError) as error:
        parse(text, "s.yaml")
    assert error.value.problems[0].line == line


def test_a_document_laid_over_another_keeps_the_places_of_both() -> None:
    below = parse("a: {x: 1, y: 2}\nrules: [p, q]\n", "below")
    above = parse("a:\n  y: 3\nrules:\n  - r\n", "above")
    merged = above.over(below, prepend=("rules",))
    assert merged.value == {"a": {"x": 1, "y": 3}, "rules": ["r", "p", "q"]}
    assert merged.place(("a", "x")) == ("below", 1)
    assert merged.place(("a", "y")) == ("above", 2)
    assert merged.place(("rules", 0)) == ("above", 4)
    assert merged.place(("rules", 2)) == ("below", 2)
