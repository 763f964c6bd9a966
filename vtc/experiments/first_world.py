"""The first world's recorded rows (results/first-world) under the names that are used today.

Their files stay byte for byte as they were written; this is the one place that knows their columns.
"""

COLUMNS = {"misled": "shuffled", "looks": "attention_map"}  # theirs -> today's


def today(row: dict[str, str]) -> dict[str, str]:
    """A recorded row with today's column names; rows of today pass as they are."""
    return {COLUMNS.get(name, name): text for name, text in row.items()}
