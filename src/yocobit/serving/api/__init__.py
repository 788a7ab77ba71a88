"""OpenAI's API: the endpoint table, one handler file per endpoint family, request schemas."""
