"""Lists that stand as text in a table's cells. Knows no file."""

from __future__ import annotations

import ast
from typing import Any


def with_lists(rows: list[dict[str, Any]], columns: list[str]) -> list[str]:
    """Lists that stand as text in all cells of a column, as pandas writes them, become lists; says
    of which columns.
    """
    told = []
    for column in columns:
        cells = [row.get(column) for row in rows]
        texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip()]
        if not texts or not all(text[0] == "[" and text[-1] == "]" for text in texts):
            continue
        try:
            values = [ast.literal_eval(c) if isinstance(c, str) and c.strip() else c for c in cells]
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        for row, value in zip(rows, values, strict=True):
            row[column] = value
        told.append(f"{column}: lists that are written as text")
    return told
