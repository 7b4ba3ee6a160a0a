"""Small helpers for files: CSV text, and sizes for people."""

from pipeline.core.files import csv_text, readable_size


def test_csv_has_a_line_for_each_row_and_quotes_where_needed() -> None:
    assert csv_text([("a", "b"), (1, 0.25), (None, "x,y")]) == 'a,b\n1,0.25\n,"x,y"\n'
    assert csv_text([]) == ""


def test_sizes_have_three_digits_and_a_unit() -> None:
    sizes = {0: "0 B", 999: "999 B", 1_000: "1 kB", 1_250_000: "1.25 MB", 261_400_000_000: "261 GB", 5 * 10**12: "5 TB"}
    assert {size: readable_size(size) for size in sizes} == sizes
