"""LangChain's ChatGroq."""

import langchain_features
from feature import MODEL, N_TOKENS, run
from langchain_groq import ChatGroq


def connect(url: str, n_tokens: int = N_TOKENS) -> ChatGroq:
    return ChatGroq(
        model=MODEL, base_url=url, api_key="none", max_tokens=n_tokens, model_kwargs={"seed": 1}
    )


run(**langchain_features.features(connect))
