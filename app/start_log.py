"""What the log says once a server serves: what it serves, and where a newcomer begins."""

from __future__ import annotations

import shlex
import socket
from typing import Any

from starlette.datastructures import State

from app.api.serving import Serving

MOST_NAMED = 20  # adapters
Line = tuple[str, dict[str, Any]]


def served_line(serving: Serving) -> Line:
    """The base and the first adapters."""
    encoder, names = serving.runtime.engine.encoder, sorted(serving.runtime.registry.names)
    more = ["…"] if len(names) > MOST_NAMED else []
    return (
        "serving %(model)s (%(type)s, %(device)s, %(dtype)s) with %(count)d adapters: %(names)s",
        {
            "model": encoder.files.id,
            "type": encoder.base.model_type,
            "device": str(encoder.device),
            "dtype": str(encoder.dtype),
            "count": len(names),
            "names": ", ".join([*names[:MOST_NAMED], *more]),
        },
    )


def url_of(listening: socket.socket) -> str:
    """Where this machine reaches the server."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def where_to_begin(state: State, url: str) -> list[Line]:
    """The address, the documentation, a request to paste, and who may change adapters.

    state: the app's.
    """
    name = min(state.serving.runtime.registry.names, default=None)
    words = ["curl", "-s", f"{url}/embed" + (f"?adapter={name}" if name else "")]
    words += ["-H", "Content-Type: application/json", "-d", '{"inputs": "I love this film."}']
    key = ' -H "Authorization: Bearer $KEY"' if state.needs_key else ""
    where = " (with a key of yours in KEY)" if key else ""
    return [
        ("listening on %(url)s", {"url": url}),
        ("documentation: %(docs)s", {"docs": f"{url}/docs"}),
        (f"to begin{where}: %(curl)s", {"curl": shlex.join(words) + key}),
        ("adapters are changed by %(who)s", {"who": state.who_may_change}),
    ]
