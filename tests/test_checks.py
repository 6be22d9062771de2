"""Messages about invalid values."""

from __future__ import annotations

import pytest

from fastcifar.errors import UsageError
from fastcifar.io.checks import require_choice


def test_of_many_choices_the_similar_ones_are_listed_first() -> None:
    with pytest.raises(UsageError) as refusal:
        require_choice("target", "class-77x", tuple(f"class-{i:02d}" for i in range(100)))
    message = str(refusal.value)
    assert message.startswith("target is 'class-77x'; expected one of: class-77, ")
    assert message.endswith(" … (100 in all)")
    assert message.count(",") == 19


def test_few_choices_are_all_listed_in_order() -> None:
    with pytest.raises(UsageError) as refusal:
        require_choice("split", 3, ("test", "val"))
    assert str(refusal.value) == "split is 3; expected one of: test, val"


def test_a_choice_that_prints_like_another_is_shown_with_escapes() -> None:
    with pytest.raises(UsageError) as refusal:
        require_choice("target", "cafe\u0301", ("caf\u00e9", "bar"))
    assert str(refusal.value) == r"target is 'cafe\u0301'; expected 'caf\xe9', the same text in other characters"
