"""Listing and retrieval of models."""

from __future__ import annotations

from sdk_clients import MODEL


def test_models_are_listed(client):
    models = client.models.list()

    assert models.object == "list"
    assert MODEL in [model.id for model in models.data]
    assert {model.object for model in models.data} == {"model"}


def test_model_is_retrieved_as_it_is_listed(client):
    [listed] = [model for model in client.models.list().data if model.id == MODEL]

    assert client.models.retrieve(MODEL) == listed
    assert client.models.retrieve("gpt-4o").object == "model"
