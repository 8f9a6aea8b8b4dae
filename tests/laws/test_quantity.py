"""Durations and sizes as people write them."""

from __future__ import annotations

import pytest

from broker.model.quantity import duration_s, size_bytes


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("10s", 10), ("500ms", 0.5), ("5m", 300), ("2h", 7200), ("1d", 86_400), (3, 3), (0.5, 0.5), ("0s", 0)],
)
def test_a_duration_is_one_number_and_one_unit(written: object, seconds: float) -> None:
    assert duration_s(written) == seconds


@pytest.mark.parametrize(
    "written", ["1h30", "1h30m", "10", "-1s", "s", "", "1 s", "10S", -1, float("nan"), float("inf"), True, None]
)
def test_anything_else_is_no_duration(written: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration_s(written)


@pytest.mark.parametrize(
    ("written", "size"), [("64KiB", 65_536), ("1MiB", 1_048_576), ("512B", 512), (7, 7), ("0.5KiB", 512)]
)
def test_a_size_is_one_number_and_one_unit(written: object, size: int) -> None:
    assert size_bytes(written) == size


@pytest.mark.parametrize("written", ["1MB", "1M", "1", "-1B", "0.3B", 1.5, -1, True, None, ""])
def test_anything_else_is_no_size(written: object) -> None:
    with pytest.raises(ValueError, match="size"):
        size_bytes(written)
