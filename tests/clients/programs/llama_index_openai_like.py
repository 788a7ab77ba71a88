"""LlamaIndex's OpenAILike."""

from typing import Any

from feature import DESCRIPTION, MODEL, N_TOKENS, PROMPT, TOOL, Clock, run
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def connect(url: str, n_tokens: int = N_TOKENS, **options: Any) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=f"{url}/v1",
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        max_tokens=n_tokens,
        additional_kwargs={"seed": 1},
        **options,
    )


def text(url: str) -> Any:
    return connect(url).chat([ChatMessage(content=PROMPT)]).message.content


def stream(url: str) -> Any:
    return [part.delta for part in connect(url).stream_chat([ChatMessage(content=PROMPT)])]


def tools(url: str) -> Any:
    tool = FunctionTool.from_defaults(
        lambda **arguments: "", name=TOOL, description=DESCRIPTION, fn_schema=Clock
    )
    model = connect(url, 512)
    answer = model.chat_with_tools([tool], user_msg=PROMPT, tool_required=True)
    call = model.get_tool_calls_from_response(answer)[0]
    return call.tool_name, call.tool_kwargs


def parsed(url: str) -> Any:
    model = connect(url, 512, should_use_structured_outputs=True)
    return model.structured_predict(Clock, PromptTemplate(PROMPT))


run(text=text, stream=stream, tools=tools, json=parsed)
