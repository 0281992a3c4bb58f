"""Bodies up to the cap, of every shape that might cost more than it says."""

from __future__ import annotations

import json

MAX = 15_900_000  # the cap is 16 MiB


def filled(before: bytes, piece: bytes, after: bytes, size: int = MAX) -> bytes:
    return before + piece * ((size - len(before) - len(after)) // len(piece)) + after


FLOODS = {
    "numbers for texts": ("/rerank", filled(b'{"query":"a","texts":[', b"1,", b"1]}")),
    "numbers for inputs": ("/embed", filled(b'{"inputs":["a",', b"1,", b"1]}")),
    "token ids": ("/embed", filled(b'{"inputs":[', b"30000,", b"1]}")),
    "short texts": ("/embed", filled(b'{"inputs":[', b'"ab",', b'"a"]}')),
    "empty lists": ("/embed", filled(b'{"inputs":[', b"[],", b"[]]}")),
    "lists in lists": ("/embed", filled(b'{"inputs":', b"[", b"")),
    "unknown members": ("/embed", filled(b'{"inputs":"a"', b',"b":1', b"}")),
    "a long adapter": ("/embed", filled(b'{"inputs":["a"],"adapters":["', b"a", b'"]}')),
    "wrong adapters": ("/embed", filled(b'{"inputs":"a","adapters":[', b"1,", b"1]}")),
    "a long model": ("/v1/embeddings", filled(b'{"input":"a","model":"', b"a", b'"}')),
    "a long member": ("/embed", filled(b'{"', b"a", b'":1}')),
    "one long word": ("/embed", filled(b'{"inputs":"', b"a", b'"}')),
    "words": ("/embed", filled(b'{"inputs":"', b"a ", b'"}')),
    "spaces": ("/embed", filled(b'{"inputs":"a', b" ", b'"}')),
    "escapes": ("/embed", filled(b'{"inputs":"a', b"\\n", b'"}')),
    "hex escapes": ("/embed", filled(b'{"inputs":"a', b"\\u0041 ", b'"}')),
    "faces": ("/embed", filled(b'{"inputs":"a', "😀".encode(), b'"}')),
    "a face among letters": ("/embed", filled('{"inputs":"😀'.encode(), b"a ", b'"}')),
    "long texts": ("/embed", filled(b'{"inputs":[', b'"' + b"a\\n" * 5000 + b'",', b'"a"]}')),
    "cyrillic texts": (
        "/embed",
        filled(b'{"inputs":[', b'"' + "привет ".encode() * 1200 + b'",', b'"a"]}'),
    ),
    "a long prompt": (
        "/embed",
        json.dumps(
            {"inputs": [f"text {i}" for i in range(512)], "prompt": "word " * 2000}
        ).encode(),
    ),
    "a long query": (
        "/rerank",
        json.dumps({"query": "word " * 20_000, "texts": ["a"] * 1000}).encode(),
    ),
    "chinese": (
        "/embed",
        filled(b'{"truncation_direction":"left","inputs":"a', "好".encode(), b'"}'),
    ),
    "white space": ("/embed", filled(b'{"inputs":"a"', b" ", b"}")),
    "nulls": ("/embed", filled(b'{"inputs":"a","adapters":[', b"null,", b"null]}")),
    "a number": ("/embed", filled(b'{"inputs":', b"1", b"}")),
    "endless numbers": ("/embed", filled(b'{"inputs":[', b"9" * 4000 + b",", b"1]}")),
    "no JSON": ("/embed", filled(b"", b"x", b"")),
    "quotes": ("/embed", filled(b'{"inputs":', b'"', b"}")),
}
