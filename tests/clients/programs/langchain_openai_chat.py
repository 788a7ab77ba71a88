"""LangChain's ChatOpenAI."""

import langchain_features
from feature import MODEL, N_TOKENS, run
from langchain_openai import ChatOpenAI


def connect(url: str, n_tokens: int = N_TOKENS) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL, base_url=f"{url}/v1", api_key="none", seed=1, max_completion_tokens=n_tokens
    )


run(**langchain_features.features(connect))
