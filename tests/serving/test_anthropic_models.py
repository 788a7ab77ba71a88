"""Models in Anthropic's API: the shape that its SDK validates, pages, errors."""

from __future__ import annotations

import anthropic
import httpx
import pytest
import servers

from yocobit.serving import ServerSettings

NAMES = ["tiny", "a", "b", "c"]
CONTEXT = 256
VERSION = {"anthropic-version": "2023-06-01"}


@pytest.fixture(scope="module")
def server():
    settings = ServerSettings(threads=1, context=CONTEXT, alias=("a", "b", "c"))
    with servers.running(settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    """Anthropic's SDK, which validates each response by its types."""
    options = {"max_retries": 0, "_strict_response_validation": True}
    with anthropic.Anthropic(base_url=server.url, api_key="none", **options) as client:
        yield client


def test_sdk_lists_the_model_under_all_its_names(client):
    page = client.models.list()

    assert [model.id for model in page.data] == NAMES
    assert (page.first_id, page.last_id, page.has_more) == ("tiny", "c", False)
    assert {model.max_input_tokens for model in page.data} == {CONTEXT}
    assert {(model.type, model.lifecycle) for model in page.data} == {("model", "active")}


def test_sdk_retrieves_a_model(client):
    model = client.models.retrieve("b")

    assert (model.id, model.display_name, model.type) == ("b", "b", "model")
    assert model.created_at.tzinfo is not None


def test_sdk_reads_the_id_of_a_request(server, client):
    model = client.models.with_raw_response.retrieve("b")

    assert model.headers["request-id"] == model.headers["x-request-id"]
    assert "request-id" not in server.client.get("/v1/models").headers


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 20])
def test_sdk_reads_all_pages(client, limit):
    assert [model.id for model in client.models.list(limit=limit)] == NAMES


@pytest.mark.parametrize(
    ("options", "ids", "has_more"),
    [
        ({"limit": 2}, ["tiny", "a"], True),
        ({"after_id": "a"}, ["b", "c"], False),
        ({"after_id": "tiny", "limit": 1}, ["a"], True),
        ({"after_id": "c"}, [], False),
        ({"before_id": "c"}, ["tiny", "a", "b"], False),
        ({"before_id": "c", "limit": 1}, ["b"], True),
        ({"before_id": "tiny"}, [], False),
        ({"after_id": "tiny", "before_id": "c"}, ["a", "b"], False),
        ({"after_id": "b", "before_id": "a"}, [], False),
    ],
)
def test_page_lies_after_or_before_an_id(server, options, ids, has_more):
    body = server.client.get("/v1/models", params=options, headers=VERSION).json()

    assert [model["id"] for model in body["data"]] == ids
    assert body["has_more"] == has_more
    assert body["first_id"] == (ids[0] if ids else None)
    assert body["last_id"] == (ids[-1] if ids else None)


@pytest.mark.parametrize(
    ("path", "status", "kind", "words"),
    [
        ("/v1/models?limit=0", 400, "invalid_request_error", "limit: "),
        ("/v1/models?limit=1001", 400, "invalid_request_error", "limit: "),
        ("/v1/models?after_id=claude", 400, "invalid_request_error", "after_id: there is no"),
        ("/v1/models?before_id=claude", 400, "invalid_request_error", "before_id: there is no"),
        ("/v1/models/claude", 404, "not_found_error", "does not exist"),
        ("/v1/files", 404, "not_found_error", "/v1/files does not exist"),
    ],
)
def test_errors_have_anthropics_shape(server, path, status, kind, words):
    response = server.client.get(path, headers=VERSION)

    assert response.status_code == status
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert words in body["error"]["message"]


def test_wrong_method_and_missing_key_have_anthropics_shape():
    with servers.running(ServerSettings(threads=1, api_keys=("the first key",))) as guarded:
        method = guarded.client.delete("/v1/models", headers=VERSION)
        keyless = httpx.get(guarded.url + "/v1/models", headers=VERSION)

    assert (method.status_code, method.json()["type"]) == (405, "error")
    assert keyless.status_code == 401
    assert keyless.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("query", ["", "?limit=5000", "?limit=all&after_id=claude", "?limit=1"])
def test_models_have_openais_shape_without_the_header_of_anthropics_api(server, query):
    """OpenAI's list has no query: it is complete, whatever a client sends."""
    listed = server.client.get("/v1/models" + query).json()

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == NAMES
    assert {model["object"] for model in listed["data"]} == {"model"}
    assert server.client.get("/v1/models/a").json()["object"] == "model"
    assert "param" in server.client.get("/v1/models/claude").json()["error"]
