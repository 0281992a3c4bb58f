"""Every spelling of "which adapter" gives the same as that adapter alone."""

from __future__ import annotations

import httpx
import pytest

from tests.oracles import SENTENCES

INPUTS = SENTENCES[:4]


def embed(client: httpx.Client, query: str = "", **body: object) -> httpx.Response:
    return client.post(f"/embed{query}", json={"inputs": INPUTS, **body})


def version(client: httpx.Client, name: str) -> str:
    return str(client.get(f"/adapters/{name}").json()["version"])


def test_adapters_differ_from_each_other_and_from_the_base(served: httpx.Client) -> None:
    answers = [embed(served, q).text for q in ("", "?adapter=a", "?adapter=b", "?adapter=c")]
    assert len(set(answers)) == 4


def test_base_is_the_name_of_no_adapter(served: httpx.Client) -> None:
    assert embed(served, "?adapter=base").json() == embed(served).json()


def test_fan_out_gives_each_adapters_own_answer(served: httpx.Client) -> None:
    fanned = embed(served, "?adapter=a&adapter=b&adapter=base").json()
    assert list(fanned) == ["a", "b", "base"]
    for name, answer in fanned.items():
        assert answer == embed(served, f"?adapter={name}").json()


def test_one_adapter_per_input_equals_each_alone(served: httpx.Client) -> None:
    names = ["a", None, "b", "base"]
    mixed = embed(served, adapters=names).json()
    for i, name in enumerate(names):
        alone = embed(served, f"?adapter={name or 'base'}").json()
        assert mixed[i] == alone[i]


def test_a_version_is_named_by_12_or_more_digits(served: httpx.Client) -> None:
    digest = version(served, "a")
    for prefix in (digest[:12], digest[:30], digest):
        answer = embed(served, f"?adapter=a@{prefix}")
        assert answer.json() == embed(served, "?adapter=a").json()
        assert answer.headers["x-adapter"] == f"a@{digest}"


@pytest.mark.parametrize("prefix", ["", "0", "000000000000", "g" * 12])
def test_an_unknown_version_is_404(served: httpx.Client, prefix: str) -> None:
    answer = embed(served, f"?adapter=a@{prefix}")
    assert (answer.status_code, answer.json()["error_type"]) == (404, "version_not_found")


def test_the_header_names_every_adapter_once(served: httpx.Client) -> None:
    answer = embed(served, adapters=["a", None, "a", "c"])
    base = served.get("/info").json()["base"]["digest"]
    stamps = [f"a@{version(served, 'a')}", f"base@{base}", f"c@{version(served, 'c')}"]
    assert answer.headers["x-adapter"] == ", ".join(stamps)


def test_an_unknown_adapter_is_404_with_the_nearest_names(served: httpx.Client) -> None:
    served.put("/adapters/sentiment", **_bare(served))
    answer = embed(served, "?adapter=sentimnet")
    assert answer.status_code == 404
    assert answer.json()["error_type"] == "adapter_not_found"
    assert answer.json()["nearest"] == ["sentiment"]


def _bare(client: httpx.Client) -> dict[str, object]:
    from tests.adapters.made import tutorial_file

    return {"content": tutorial_file(), "params": {"alpha": 16, "layout": "tutorial"}}


def test_query_and_body_that_disagree_are_400(served: httpx.Client) -> None:
    answer = embed(served, "?adapter=a", adapters=["a", "a", "a", "b"])
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")
    assert embed(served, "?adapter=a", adapters=["a"] * 4).status_code == 200


@pytest.mark.parametrize(
    ("query", "body", "field"),
    [
        ("?adaptor=a", {}, "adaptor"),
        ("", {"adapters": ["a"]}, "adapters"),
        ("", {"adapter": "a"}, "adapter"),
        ("", {"adapters": "a"}, "adapters"),
    ],
)
def test_a_misspelled_choice_is_refused_not_ignored(
    served: httpx.Client, query: str, body: dict[str, object], field: str
) -> None:
    answer = embed(served, query, **body)
    assert (answer.status_code, answer.json()["code"]) == (422, "validation")
    assert answer.json()["problems"][0]["field"] == field


def test_classify_without_a_head_says_who_has_one(served: httpx.Client) -> None:
    for query in ("", "?adapter=a", "?adapter=c&adapter=base"):
        answer = served.post(f"/classify{query}", json={"inputs": "good"})
        assert (answer.status_code, answer.json()["error_type"]) == (422, "no_head")
        assert answer.json()["adapters_with_head"] == ["c"]


def test_classify_shapes_follow_the_inputs(served: httpx.Client) -> None:
    one = served.post("/classify?adapter=c", json={"inputs": "good"}).json()
    many = served.post("/classify?adapter=c", json={"inputs": ["good"]}).json()
    ids = served.post("/classify?adapter=c", json={"inputs": [2, 7, 8, 3]}).json()
    assert many == [one]
    assert sorted(e["label"] for e in one) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert sum(e["score"] for e in one) == pytest.approx(1, abs=1e-6)
    assert len(ids) == 3


def test_top_k_and_threshold_keep_the_best(served: httpx.Client) -> None:
    full = served.post("/classify?adapter=c", json={"inputs": "good"}).json()
    two = served.post("/classify?adapter=c", json={"inputs": "good", "top_k": 2}).json()
    floor = full[1]["score"]
    body = {"inputs": "good", "threshold": floor}
    assert two == full[:2] == served.post("/classify?adapter=c", json=body).json()


def test_an_empty_name_is_no_name_of_the_base(served: httpx.Client) -> None:
    assert embed(served, "?adapter=").status_code == 404
    assert embed(served, adapters=["a", "", None, "b"]).status_code == 404


def test_naming_one_adapter_twice_is_still_a_fan_out(served: httpx.Client) -> None:
    assert list(embed(served, "?adapter=a&adapter=a").json()) == ["a"]


def test_the_bases_version_is_its_digest(served: httpx.Client) -> None:
    digest = served.get("/info").json()["base"]["digest"]
    assert embed(served, f"?adapter=base@{digest[:12].upper()}").json() == embed(served).json()
    assert embed(served, "?adapter=base@000000000000").status_code == 404
