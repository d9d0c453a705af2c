"""How many shapes there are, and how much of them is filling."""

from maxlm.decoding.shapes import length_bucket, rows_bucket


def test_lengths_are_few_and_hold_little_filling():
    buckets = [length_bucket(length) for length in range(1, 100_001)]
    assert all(length <= bucket for length, bucket in enumerate(buckets, 1))
    assert sorted(buckets) == buckets
    assert sorted(set(buckets))[:12] == [64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024]
    assert len(set(buckets)) < 40
    assert all(bucket % 64 == 0 for bucket in set(buckets))
    assert max(bucket / length for length, bucket in enumerate(buckets, 1) if length > 512) <= 1.25


def test_rows_are_shared_by_the_devices():
    assert [rows_bucket(rows, 1) for rows in (1, 2, 3, 5, 8, 9)] == [1, 2, 4, 8, 8, 16]
    assert [rows_bucket(rows, 3) for rows in (1, 3, 4, 7)] == [3, 3, 6, 12]
