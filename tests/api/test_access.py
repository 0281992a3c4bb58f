"""Every route x every odd spelling of its path x every sort of key: nobody gets in by spelling.

What each route needs stands here once more, as docs/security.md promises it; a route that is not in
this table fails the test, whoever adds it.
"""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import APIRouter
from starlette.routing import Mount

from app.api.access import access_of
from tests.live import LiveServer, live_server
from tests.oracles import files_of

OPEN, KEY, WHOLE, ADMIN = "nothing", "any key", "unrestricted key", "admin key"
NEEDS = {
    ("GET", "/"): OPEN,
    ("HEAD", "/"): OPEN,
    ("GET", "/livez"): OPEN,
    ("HEAD", "/livez"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("HEAD", "/readyz"): OPEN,
    ("GET", "/health"): OPEN,
    ("HEAD", "/health"): OPEN,
    ("GET", "/ping"): OPEN,
    ("HEAD", "/ping"): OPEN,
    ("GET", "/docs"): OPEN,
    ("GET", "/docs/oauth2-redirect"): OPEN,
    ("GET", "/redoc"): OPEN,
    ("GET", "/openapi.json"): OPEN,
    ("HEAD", "/openapi.json"): OPEN,
    ("GET", "/audit"): ADMIN,
    ("GET", "/info"): KEY,
    ("GET", "/version"): KEY,
    ("GET", "/metrics"): WHOLE,
    ("GET", "/live"): WHOLE,
    ("GET", "/page/{file}"): OPEN,
    ("POST", "/embed"): KEY,
    ("POST", "/classify"): KEY,
    ("POST", "/predict"): KEY,
    ("POST", "/rerank"): KEY,
    ("POST", "/v1/rerank"): KEY,
    ("POST", "/v2/rerank"): KEY,
    ("POST", "/v1/embed"): KEY,
    ("POST", "/v2/embed"): KEY,
    ("POST", "/infinity/embeddings"): KEY,
    ("POST", "/infinity/classify"): KEY,
    ("POST", "/infinity/rerank"): KEY,
    ("GET", "/infinity/models"): KEY,
    ("GET", "/infinity/health"): OPEN,
    ("POST", "/embed_all"): KEY,
    ("POST", "/embed_sparse"): KEY,
    ("POST", "/similarity"): KEY,
    ("POST", "/decode"): KEY,
    ("POST", "/"): KEY,
    ("POST", "/invocations"): KEY,
    ("POST", "/v1/embeddings"): KEY,
    ("POST", "/openai/v1/embeddings"): KEY,
    ("POST", "/openai/deployments/{deployment}/embeddings"): KEY,
    ("GET", "/v1/models"): KEY,
    ("GET", "/v1/models/{model}"): KEY,
    ("POST", "/score"): KEY,
    ("POST", "/v1/score"): KEY,
    ("POST", "/pooling"): KEY,
    ("POST", "/tokenize"): KEY,
    ("POST", "/detokenize"): KEY,
    ("POST", "/v1/load_lora_adapter"): ADMIN,
    ("POST", "/v1/unload_lora_adapter"): ADMIN,
    ("GET", "/v2"): KEY,
    ("GET", "/v2/health/live"): OPEN,
    ("GET", "/v2/health/ready"): OPEN,
    ("POST", "/v2/repository/index"): KEY,
    ("GET", "/v2/models/{model}"): KEY,
    ("GET", "/v2/models/{model}/ready"): KEY,
    ("POST", "/v2/models/{model}/infer"): KEY,
    ("GET", "/v2/models/{model}/versions/{version}"): KEY,
    ("GET", "/v2/models/{model}/versions/{version}/ready"): KEY,
    ("POST", "/v2/models/{model}/versions/{version}/infer"): KEY,
    ("GET", "/adapters"): KEY,
    ("GET", "/adapters/{name}"): KEY,
    ("HEAD", "/adapters/{name}"): KEY,
    ("GET", "/adapters/{name}/versions"): KEY,
    ("GET", "/adapters/{name}/changes"): KEY,
    ("PUT", "/adapters/{name}"): ADMIN,
    ("PUT", "/adapters/{name}/labels"): ADMIN,
    ("DELETE", "/adapters/{name}"): ADMIN,
    ("GET", "/adapters/{name}/files"): ADMIN,
    **{
        ("POST", f"/adapters/{{name}}/{verb}"): ADMIN
        for verb in (
            "merge",
            "unmerge",
            "rollback",
            "canary",
            "shadow",
            "promote",
            "abort",
            "compose",
        )
    },
}
BELOW = {  # the routes that stand below /a/{adapter}, too
    ("GET", "/"),
    ("GET", "/livez"),
    ("HEAD", "/"),
    ("HEAD", "/livez"),
    ("GET", "/readyz"),
    ("HEAD", "/readyz"),
    ("GET", "/health"),
    ("HEAD", "/health"),
    ("GET", "/ping"),
    ("HEAD", "/ping"),
    ("GET", "/info"),
    ("POST", "/embed"),
    ("POST", "/embed_all"),
    ("POST", "/embed_sparse"),
    ("POST", "/similarity"),
    ("POST", "/decode"),
    ("POST", "/"),
    ("POST", "/invocations"),
    ("POST", "/classify"),
    ("POST", "/predict"),
    ("POST", "/rerank"),
    ("POST", "/v1/rerank"),
    ("POST", "/v2/rerank"),
    ("POST", "/v1/embed"),
    ("POST", "/v2/embed"),
    ("POST", "/infinity/embeddings"),
    ("POST", "/infinity/classify"),
    ("POST", "/infinity/rerank"),
    ("GET", "/infinity/models"),
    ("GET", "/infinity/health"),
    ("POST", "/v1/embeddings"),
    ("POST", "/openai/v1/embeddings"),
    ("POST", "/openai/deployments/{deployment}/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/version"),
    ("POST", "/score"),
    ("POST", "/v1/score"),
    ("POST", "/pooling"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("POST", "/v2/repository/index"),
    ("GET", "/v2/models/{model}"),
    ("GET", "/v2/models/{model}/ready"),
    ("POST", "/v2/models/{model}/infer"),
    ("GET", "/v2/models/{model}/versions/{version}"),
    ("GET", "/v2/models/{model}/versions/{version}/ready"),
    ("POST", "/v2/models/{model}/versions/{version}/infer"),
}
NEEDS |= {(method, "/a/{adapter}" + path): NEEDS[method, path] for method, path in BELOW}
NEEDS |= {(method, "/a/{adapter}"): NEEDS[method, "/"] for method in ("GET", "HEAD", "POST")}
KEYS = {"inference": "key-of-inference", "narrow": "key-for-b-alone", "admin": "key-of-an-admin"}
UNKNOWN = {"nobody": None, "stranger": "a-key-that-nobody-gave"}
ALLOWED = {  # with a key of each sort, on a server that has keys
    OPEN: {"nobody", "stranger", "inference", "narrow", "admin"},
    KEY: {"inference", "narrow", "admin"},
    WHOLE: {"inference", "admin"},
    ADMIN: {"admin"},
}
PLACES = re.compile(r"\{(name|adapter|model|deployment)\}")  # of an adapter's name
REFUSALS = {400, 401, 403, 404, 405}


def spellings(path: str) -> list[str]:
    """The path, and ways to spell it that somebody might read as the same one."""
    head, _, last = path.rpartition("/")
    return [
        path,
        *(f"{path}%{code}" for code in ("0a", "0d", "09", "00", "7f", "20", "2f", "c2%85", "ff")),
        *(f"{path}{end}" for end in ("/", "//", "/.", "/..", ";x", ";x=1", ".json", "?", "#x")),
        f"{head}%2f{last}",
        f"{head}//{last}",
        f"{head}/./{last}",
        f"{head}/x/../{last}",
        f"{head}/%0a{last}",
        f"/{path}",
        f"/.{path}",
        f"/%0a{path[1:]}",
        path.upper(),
        f"http://elsewhere{path}",
        f"http://elsewhere{path}%0a",
        "*",
    ]


class Line:
    """One connection that sends a path exactly as it is spelled."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)

    def close(self) -> None:
        self._connection.close()

    def status(self, method: str, path: str, key: str | None) -> int:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._connection.request(method, path, headers=headers)
        answer = self._connection.getresponse()
        answer.read()
        return answer.status


def server_of(base: Path, adapter: Path, folder: Path, **settings: object) -> LiveServer:
    server = live_server(
        model=str(base), store=folder / "store", adapters_dir=folder / "none", **settings
    )
    by = {"Authorization": f"Bearer {KEYS['admin']}"}
    server.client.put("/adapters/a", files=files_of(adapter), headers=by)
    return server


@pytest.fixture(scope="module")
def keyed(
    tiny_bert: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("spelled")
    (folder / "keys").write_text(f"{KEYS['narrow']} adapters=b\n")
    server = server_of(
        tiny_bert,
        folders["a"],
        folder,
        api_keys=KEYS["inference"],
        api_keys_file=folder / "keys",
        admin_keys=KEYS["admin"],
    )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def reachable(
    tiny_bert: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server without keys that other machines can reach."""
    folder = tmp_path_factory.mktemp("reachable")
    server = server_of(tiny_bert, folders["a"], folder, host="0.0.0.0")
    yield server
    server.stop()


def routes_of(server: LiveServer) -> dict[tuple[str, str], str]:
    """(method, path) -> what was declared, of every route that the app runs."""
    return {
        (method, route.path.replace(":path", "")): access_of(route).needs
        for route in server.app.routes
        if not isinstance(route, Mount)
        for method in route.methods
    }


def test_every_route_needs_what_the_docs_promise(keyed: LiveServer) -> None:
    assert routes_of(keyed) == NEEDS


def test_a_route_that_says_nothing_needs_an_admin_key() -> None:
    router = APIRouter()
    router.get("/new")(lambda: None)
    assert access_of(router.routes[0]).needs == ADMIN


@pytest.mark.slow
def test_no_spelling_of_a_path_opens_a_door(keyed: LiveServer, subtests: pytest.Subtests) -> None:
    with contextlib.closing(Line(keyed.url)) as line:
        assert try_all(line, subtests)


def try_all(line: Line, subtests: pytest.Subtests) -> int:
    """Every key, route and spelling; how many requests were let in."""
    opened = 0
    for who, key in (UNKNOWN | KEYS).items():
        # What an admin changes here is nobody's, so that what the others are refused is still there.
        name = "nobody-has-this" if who == "admin" else "a"
        for (method, template), needs in NEEDS.items():
            narrowed = who == "narrow" and needs != OPEN and PLACES.search(template)
            allowed = who in ALLOWED[needs] and not narrowed
            path = PLACES.sub(name, template)
            with subtests.test(who=who, method=method, path=path):
                # Below the prefix are the routes that have been asked in every spelling without it.
                few = 6 if template.startswith("/a/") else None
                for spelled in spellings(path)[:few]:
                    status = line.status(method, spelled, key)
                    assert status < 500, spelled
                    assert allowed or status in REFUSALS, (spelled, status)
                    opened += status not in REFUSALS
                if allowed:
                    assert line.status(method, path, key) not in (401, 403, 405)
                else:
                    # These may be the base, too: the key is asked behind the body.
                    behind = "{deployment}" in template or "/infer" in template
                    late = {400} if who == "narrow" and behind else set()
                    assert line.status(method, path, key) in {401, 403} | late
    return opened


def test_without_keys_nothing_but_reading_is_open_to_other_machines(
    reachable: LiveServer, subtests: pytest.Subtests
) -> None:
    for (method, template), needs in NEEDS.items():
        if needs != ADMIN:
            continue
        path = template.replace("{name}", "a")
        with contextlib.closing(Line(reachable.url)) as line, subtests.test(path=path):
            for spelled in spellings(path):
                assert line.status(method, spelled, None) in REFUSALS, spelled
            assert line.status(method, path, None) == 403


def test_what_matches_no_route_says_so_before_any_key(keyed: LiveServer) -> None:
    client = keyed.client
    nowhere = client.get("/adapter/a")
    assert nowhere.status_code == 404
    assert "did you mean /adapters" in nowhere.json()["error"]
    odd = client.get("/adapters/a/files%0a")
    assert (odd.status_code, odd.json()["error_type"]) == (400, "malformed")


def test_a_method_that_a_path_does_not_take_is_told_those_that_it_takes(keyed: LiveServer) -> None:
    answer = keyed.client.post("/adapters/a")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PUT"
    assert "uploaded with PUT" in answer.json()["error"]
    assert keyed.client.request("OPTIONS", "/embed").headers["allow"] == "POST"


def test_a_post_where_nothing_is_put_is_told_of_no_put(keyed: LiveServer) -> None:
    answer = keyed.client.post("/metrics")
    assert answer.status_code == 405
    assert "PUT" not in answer.json()["error"]


def test_a_control_character_of_any_sort_is_told_as_such(keyed: LiveServer) -> None:
    for code in ("09", "00", "7f", "c2%85"):
        answer = keyed.client.get(f"/adapters/a%{code}")
        assert (answer.status_code, answer.json()["error_type"]) == (400, "malformed"), code


def test_of_an_endless_path_the_beginning_is_told_and_no_metric_has_it(keyed: LiveServer) -> None:
    path = f"/endless{'x' * 5_000}"
    answer = keyed.client.get(path)
    assert answer.status_code == 404
    assert path[:100] in answer.json()["error"]
    assert len(answer.json()["error"]) < 300
    by = {"Authorization": f"Bearer {KEYS['admin']}"}
    metrics = keyed.client.get("/metrics", headers=by).text
    assert 'route="unknown"' in metrics
    assert "endless" not in metrics


def test_nobody_is_led_to_the_documentations_inner_pages(keyed: LiveServer) -> None:
    assert (
        "oauth2" not in keyed.client.get("/docs/oauth2-redirec").json()["error"].partition(";")[2]
    )


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/embeddings%00", "/v1/models/x%0a", "/v1"])
def test_errors_of_a_familys_paths_are_in_its_shape_whatever_is_wrong_with_them(
    reachable: LiveServer, path: str
) -> None:
    assert "message" in reachable.client.get(path).json()["error"]
    assert isinstance(reachable.client.get(path.replace("v1", "v9")).json()["error"], str)


def test_families_that_share_a_first_word_are_told_by_the_next(reachable: LiveServer) -> None:
    for path, in_words in (
        ("/v2/models/x%0a", True),
        ("/a/x/v2/models/y%0a", True),
        ("/v2/rerank%0a", False),
        ("/a/x/v1/models/y%0a", False),
    ):
        answer = reachable.client.get(path)
        assert answer.status_code == 400
        assert isinstance(answer.json()["error"], str) is in_words, path


def test_an_empty_text_is_named_by_its_place_in_its_clients_words(reachable: LiveServer) -> None:
    fields = {
        client.post(path, json=body).json()["problems"][0]["field"]
        for client in [reachable.client]
        for path, body in (
            ("/embed", {"inputs": ["a", ""]}),
            ("/v1/embeddings", {"model": "base", "input": ["a", ""]}),
            ("/rerank", {"query": "q", "texts": ["a", ""]}),
        )
    }
    assert fields == {"inputs[1]", "input[1]", "texts[1]"}
