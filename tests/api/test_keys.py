"""Keys: who may do what, with which adapters and how much; and that no key is ever told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.api.key_entries import KeysRefused, read_keys, refuse_twice
from app.api.middleware.authenticate import is_loopback
from app.assemble import StartRefused
from app.inference.quota import Charge, QuotaExceeded, Quotas
from tests.conftest import Serve
from tests.live import LiveServer, live_server
from tests.oracles import files_of

TEXT = {"inputs": "the good film"}
KEYS = {"web": "inference-key-of-web", "old": "inference-key-of-before", "boss": "admin-key-1"}
LIMITED, NARROW = "key-with-a-quota-of-40", "key-for-a-only"
FILE = f"""
# who      what
{LIMITED}  name=limited tokens_per_s=40
{NARROW}   name=narrow  adapters=a|team-*
"""


@pytest.fixture(scope="module")
def keyed(
    tiny_bert: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text(FILE)
    server = live_server(
        model=str(tiny_bert),
        store=folder / "store",
        adapters_dir=folder / "none",
        api_keys=f"{KEYS['web']}, {KEYS['old']}",
        api_keys_file=folder / "keys",
        admin_keys=KEYS["boss"],
    )
    for name in "ac":
        files = files_of(folders[name])
        server.client.put(f"/adapters/{name}", files=files, headers=by("boss")).raise_for_status()
    yield server
    server.stop()


def by(who: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS.get(who, who)}"}


ADMIN = [
    ("PUT", "/adapters/new"),
    ("DELETE", "/adapters/a"),
    *(
        ("POST", f"/adapters/a/{what}")
        for what in ("merge", "unmerge", "rollback", "canary", "shadow", "promote", "abort")
    ),
    ("GET", "/adapters/a/files"),
]
INFERENCE = [
    ("POST", "/embed"),
    ("POST", "/classify?adapter=c"),
    ("POST", "/predict?adapter=c"),
    ("POST", "/rerank"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/adapters"),
    ("GET", "/adapters/a"),
    ("GET", "/adapters/a/versions"),
    ("GET", "/info"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), ADMIN)
def test_admin_routes_need_an_admin_key(keyed: LiveServer, method: str, path: str) -> None:
    nobody = keyed.client.request(method, path)
    assert (nobody.status_code, nobody.json()["error_type"]) == (401, "unauthenticated")
    assert nobody.headers["www-authenticate"] == "Bearer"
    for who in ("web", "old"):
        answer = keyed.client.request(method, path, headers=by(who))
        assert (answer.status_code, answer.json()["error_type"]) == (403, "forbidden")
    assert keyed.client.get("/adapters/a", headers=by("web")).status_code == 200


@pytest.mark.parametrize(("method", "path"), INFERENCE)
def test_the_other_routes_need_any_key(keyed: LiveServer, method: str, path: str) -> None:
    for wrong in ({}, by("unknown"), {"Authorization": "nobody"}, {"Authorization": "Basic x"}):
        answer = keyed.client.request(method, path, headers=wrong)
        assert answer.status_code == 401
        error = answer.json()["error"]
        assert "needs a key" in (error["message"] if path.startswith("/v1") else error)
    for who in KEYS:
        answer = keyed.client.request(method, path, headers=by(who), json=TEXT)
        assert answer.status_code not in (401, 403), who


def test_a_key_is_read_however_its_scheme_is_spelled(keyed: LiveServer) -> None:
    for spelled in ("bearer {}", "BEARER {}", "Bearer   {}"):
        headers = {"Authorization": spelled.format(KEYS["web"])}
        assert keyed.client.get("/info", headers=headers).status_code == 200, spelled


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Authorization", "{key}"),
        ("Authorization", "bearer  {key}"),
        ("api-key", "{key}"),
        ("x-api-key", "{key}"),
    ],
)
def test_a_key_is_read_wherever_its_client_puts_it(
    keyed: LiveServer, header: str, value: str
) -> None:
    def status(key: str, **more: str) -> int:
        headers = {header: value.replace("{key}", key), **more}
        return keyed.client.post("/embed", json=TEXT, headers=headers).status_code

    assert status(KEYS["web"]) == 200
    assert status("nobody's-key") == 401
    if header != "Authorization":  # a proxy's own word to us is no key
        assert status(KEYS["web"], Authorization="Basic eDp5") == 200


def test_the_base_and_an_adapter_of_its_own_are_open_however_they_are_named(
    keyed: LiveServer,
) -> None:
    base = keyed.client.get("/info", headers=by("web")).json()["model_id"]
    for path in ("base", base, "a", f"{base}:a"):
        answer = keyed.client.post(f"/a/{path}/embed", json=TEXT, headers=by(NARROW))
        assert answer.status_code == 200, path


def test_an_adapter_of_others_is_closed_however_it_is_named(keyed: LiveServer) -> None:
    openai = {"model": "c", "input": "x"}
    for path, more, body in (
        ("/embed?adapter=c", {}, TEXT),
        ("/embed", {"X-Adapter": "c"}, TEXT),
        ("/a/c/embed", {}, TEXT),
        ("/a/c@12345678/embed", {}, TEXT),
        (f"/a/{keyed.client.get('/info', headers=by('web')).json()['model_id']}:c/embed", {}, TEXT),
        ("/v1/embeddings", {}, openai),
        ("/openai/deployments/c/embeddings", {}, {"input": "x"}),
    ):
        answer = keyed.client.post(path, json=body, headers=by(NARROW) | more)
        assert answer.status_code == 403, path


def test_every_weight_is_read_again_for_admins_alone(keyed: LiveServer) -> None:
    verify = "/info?verify=true"
    assert keyed.client.get(verify, headers=by("web")).status_code == 403
    assert keyed.client.get(verify, headers=by("boss")).json()["base"]["intact"] is True


def test_with_admin_keys_alone_inference_is_open_and_changes_are_not(
    serve: Serve, tiny_bert: Path
) -> None:
    client = serve(model=str(tiny_bert), admin_keys=KEYS["boss"]).client
    assert client.post("/embed", json=TEXT).status_code == 200
    assert client.get("/adapters").status_code == 200
    assert client.delete("/adapters/unknown").status_code == 401
    assert client.delete("/adapters/unknown", headers=by("boss")).status_code == 404


def test_probes_and_the_page_are_open_and_name_no_adapter(keyed: LiveServer) -> None:
    for path in ("/livez", "/readyz", "/health", "/docs", "/openapi.json"):
        assert keyed.client.get(path).status_code == 200
    assert keyed.client.get("/readyz").json() == {"status": "ready"}
    assert keyed.client.get("/readyz", headers=by("web")).json()["adapters"] == 2


def test_a_key_uses_its_adapters_only_and_hears_of_no_other(keyed: LiveServer) -> None:
    mine, client = by(NARROW), keyed.client
    assert client.post("/embed?adapter=a", json=TEXT, headers=mine).status_code == 200
    assert client.post("/embed", json=TEXT, headers=mine).status_code == 200
    for spelled in ("c", "c@0123456789ab", "nothing"):
        answer = client.post(f"/embed?adapter={spelled}", json=TEXT, headers=mine)
        assert (answer.status_code, answer.json()["error_type"]) == (403, "forbidden")
    body = {"inputs": ["x", "y"], "adapters": ["a", "c"]}
    assert client.post("/embed", json=body, headers=mine).status_code == 403
    body = {"model": "c", "input": "x"}
    assert client.post("/v1/embeddings", json=body, headers=mine).status_code == 403
    assert [a["name"] for a in client.get("/adapters", headers=mine).json()] == ["a"]
    assert client.get("/adapters/c", headers=mine).status_code == 403
    assert client.get("/metrics", headers=mine).status_code == 403
    assert client.get("/info", headers=mine).json()["adapters"] == ["a"]
    assert [m["id"] for m in client.get("/v1/models", headers=mine).json()["data"]][1:] == ["a"]
    near = client.post("/embed?adapter=team-c", json=TEXT, headers=mine).json()
    assert near["nearest"] == []
    headless = client.post("/classify?adapter=a", json=TEXT, headers=mine).json()
    assert headless["adapters_with_head"] == []


def test_histories_have_the_keys_name(keyed: LiveServer) -> None:
    history = keyed.client.get("/adapters/a/versions", headers=by("web")).json()
    assert [(e["by"], e["how"]) for e in history] == [("admin-key-1", "put")]


def test_an_adapter_called_files_is_read_like_any_other(
    keyed: LiveServer, folders: dict[str, Path]
) -> None:
    put = keyed.client.put("/adapters/files", files=files_of(folders["a"]), headers=by("boss"))
    assert put.status_code == 201
    assert keyed.client.get("/adapters/files", headers=by("web")).status_code == 200
    assert keyed.client.get("/adapters/files/files", headers=by("web")).status_code == 403
    keyed.client.delete("/adapters/files", headers=by("boss"))


def test_a_quota_refuses_for_as_long_as_it_says(keyed: LiveServer) -> None:
    mine = by(LIMITED)
    long = {"inputs": ["one two three four five six"] * 20}  # far over what it has in a second
    first = keyed.client.post("/embed?adapter=a", json=long, headers=mine)
    assert first.status_code == 200  # no request is too large for ever
    second = keyed.client.post("/embed?adapter=a", json=TEXT, headers=mine)
    assert (second.status_code, second.json()["code"]) == (429, "quota_exceeded")
    assert int(second.headers["retry-after-ms"]) > 1000
    assert int(second.headers["retry-after"]) >= 2
    assert keyed.client.post("/embed?adapter=a", json=TEXT, headers=by("web")).status_code == 200


def test_an_adapters_quota_counts_all_clients(keyed: LiveServer, folders: dict[str, Path]) -> None:
    files = files_of(folders["b"])
    put = keyed.client.put("/adapters/b?tokens_per_s=30", files=files, headers=by("boss"))
    assert put.json()["tokens_per_s"] == 30
    long = {"inputs": ["one two three four five six"] * 10}
    assert keyed.client.post("/embed?adapter=b", json=long, headers=by("web")).status_code == 200
    assert keyed.client.post("/embed?adapter=b", json=TEXT, headers=by("old")).status_code == 429
    assert keyed.client.post("/embed?adapter=a", json=TEXT, headers=by("old")).status_code == 200
    again = keyed.client.put("/adapters/b?tokens_per_s=0", files=files, headers=by("boss"))
    assert again.json()["tokens_per_s"] is None
    assert keyed.client.post("/embed?adapter=b", json=TEXT, headers=by("old")).status_code == 200


def test_a_quota_in_time() -> None:
    now = [0.0]
    quotas = Quotas(lambda: now[0])

    def ask(tokens: int) -> float:
        try:
            quotas.charge([Charge("x", 100, tokens), Charge("y", None, tokens)])
        except QuotaExceeded as error:
            return error.retry_after_s
        return 0

    assert ask(60) == 0
    assert ask(140) == 0  # 40 are left: let in, and 100 in debt
    assert ask(1) == pytest.approx(1)
    now[0] += 0.999
    assert ask(1) > 0
    now[0] += 0.01
    assert ask(1) == 0
    now[0] += 1000
    assert ask(200) == 0  # a second's worth is all that was saved
    assert ask(1) == pytest.approx(1)
    quotas.give_back([Charge("x", 100, 200), Charge("y", None, 5)])
    assert ask(1) == 0


def test_without_admin_keys_nobody_changes_a_server_that_others_can_reach(
    serve: Serve, tiny_bert: Path
) -> None:
    server = serve(model=str(tiny_bert), host="0.0.0.0")
    answer = server.client.put("/adapters/x", content=b"x")
    assert (answer.status_code, answer.json()["error_type"]) == (403, "forbidden")
    assert "ADMIN_KEYS" in answer.json()["error"]
    assert server.client.post("/embed", json=TEXT).status_code == 200


def test_another_sites_page_changes_nothing_on_a_server_without_keys(client: httpx.Client) -> None:
    host = client.base_url.netloc.decode()
    merge = "/adapters/unknown/merge"
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
        assert client.post(merge, headers=headers).status_code == 403
    rebound = {"Host": "evil.example"}
    assert client.post(merge, headers=rebound).status_code == 403
    assert client.get("/adapters/unknown/files", headers=rebound).status_code == 403
    for nonsense in ({"Host": "[::1"}, {"Host": "[zz]:x"}, {"Origin": "http://["}):
        assert client.post(merge, headers=nonsense).status_code == 403
    for site in ("cross-site", "same-site"):
        assert client.post(merge, headers={"Sec-Fetch-Site": site}).status_code == 403
    assert client.post(merge, headers={"Origin": f"http://{host}"}).status_code == 404
    assert "access-control-allow-origin" not in client.post("/embed", json=TEXT).headers


@pytest.mark.parametrize("name", ["app.localhost", "localhost", "localhost.", "[::1]", "server"])
def test_a_name_that_nobody_could_have_led_here_changes_adapters(
    client: httpx.Client, name: str
) -> None:
    host = {"Host": f"{name}:{client.base_url.port}"}
    assert client.post("/adapters/unknown/merge", headers=host).status_code == 404


def test_cors_is_for_the_origins_that_were_named(serve: Serve, tiny_bert: Path) -> None:
    server = serve(model=str(tiny_bert), cors_origins="https://app.example, https://b.example")
    for origin, allowed in (("https://b.example", True), ("https://c.example", False)):
        answer = server.client.post("/embed", json=TEXT, headers={"Origin": origin})
        assert (answer.headers.get("access-control-allow-origin") == origin) is allowed


def test_the_page_may_not_be_framed_nor_load_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs").headers
    assert "default-src 'none'" in page["content-security-policy"]
    assert "frame-ancestors 'none'" in page["content-security-policy"]
    assert page["x-frame-options"] == "DENY"
    assert client.get("/adapters").headers["x-content-type-options"] == "nosniff"


def test_no_key_is_in_a_log_an_error_or_the_settings(
    keyed: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    for key in (KEYS["web"], NARROW):
        for path in ("/embed?adapter=nope", f"/embed?adapter={'x' * 99}", "/nowhere"):
            answer = keyed.client.post(path, json={"inputs": 1}, headers=by(key))
            assert key not in answer.text
            assert key not in str(answer.headers)
    metrics = keyed.client.get("/metrics", headers=by("boss")).text
    assert not any(key in metrics + caplog.text for key in [*KEYS.values(), NARROW, LIMITED])


@pytest.mark.parametrize(
    "entry", ["s3crét", "s3cret tokens_per_s=x", "s3cret tokens_per_s=-1", "s3cret s3cret=1"]
)
def test_a_key_that_cannot_be_read_stops_the_start_and_is_not_told(
    entry: str, tmp_path: Path, serve: Serve
) -> None:
    (tmp_path / "keys").write_text(f"\n{entry}\n")
    with pytest.raises(StartRefused, match="entry 2") as refused:
        serve(admin_keys_file=tmp_path / "keys")
    assert "s3cr" not in str(refused.value)


def test_an_empty_or_missing_file_of_keys_stops_the_start(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "empty").write_text("\n# nothing\n")
    for name in ("empty", "missing"):
        with pytest.raises(StartRefused, match=name):
            serve(admin_keys_file=tmp_path / name)


def test_reading_keys() -> None:
    entries = ["", " a#b  name=x adapters=p|q*", "#no", "c"]
    one, two = read_keys(entries, "admin", "here", options=True)
    assert (one.name, one.adapters, one.admin, two.name) == ("x", ("p", "q*"), True, "admin-key-2")
    assert one.may_use("q1") and one.may_use("base") and not one.may_use("r")
    for entry in ("a b=1", "a adapters=", "a adapters=x||y"):
        with pytest.raises(KeysRefused):
            list(read_keys([entry], "api", "here", options=True))
    with pytest.raises(KeysRefused):
        list(read_keys(["a adapters=x", "y"], "api", "here", options=False))
    with pytest.raises(KeysRefused, match="web and boss"):
        refuse_twice(list(read_keys(["s name=web", "s name=boss"], "api", "here", options=True)))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert not is_loopback("0.0.0.0") and not is_loopback("::") and not is_loopback("example.com")
