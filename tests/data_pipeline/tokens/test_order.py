"""Places and pieces; who is held out is tested where it is decided, in stages/test_tokens.py."""

import pytest

from data_pipeline.tokens.order import (
    ORDERS,
    PLACES,
    cut,
    order_place,
    split_place,
    threshold_of,
)


def test_places_are_uniform_and_of_two_purposes():
    names = [f"source/name{number}" for number in range(5000)]
    for fraction in (0.01, 0.1, 0.9):
        held_out = sum(split_place(name) < threshold_of(fraction) for name in names)
        assert held_out == pytest.approx(5000 * fraction, abs=80)
    assert max(map(split_place, names)) < PLACES
    assert PLACES < max(map(order_place, names)) < ORDERS
    early = [name for name in names if order_place(name) < ORDERS // 2]
    assert sum(split_place(name) < PLACES // 2 for name in early) == pytest.approx(1250, abs=120)
    # Fixed: other places would move documents that models were trained on into validation.
    assert split_place("text/a.txt:1") == 5421834227204600952
    assert order_place("text/a.txt:1") == 9641377649367979287


@pytest.mark.parametrize("max_bytes", [1, 2, 5, 10, 64, 1000])
def test_long_documents_are_cut_without_loss(max_bytes):
    text = "line one\nl\u00efne tw\u00f6\n\U0001f600\U0001f600\U0001f600\n" * 5 + "x" * 40
    pieces = list(cut("long.txt", text, max_bytes))
    assert "".join(piece for _, piece in pieces) == text
    assert all(len(piece.encode()) <= max(max_bytes, 4) for _, piece in pieces)
    assert len({name for name, _ in pieces}) == len(pieces)
    if max_bytes == 64:
        assert all(piece.endswith("\n") for _, piece in pieces[:-1])
        assert pieces[1][0] == "long.txt#2"
