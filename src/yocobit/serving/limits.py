"""The limits of what a client may send, in one table: errors and the documentation quote it.

Each is checked before its field costs time or memory. Limits that depend on the model or on the
settings (context, queue, body size) are not here.
"""

from __future__ import annotations

# Of request headers: checked by the connection, before any API key.
HEAD_BYTES = 1 << 16
HEADERS = 100
REQUEST_LINE_BYTES = 1 << 13
PIPELINED = 16  # requests behind the one in progress on a connection

# Of a body's fields.
PROMPTS = 1024  # of completions
INPUTS = 2048  # of embeddings: OpenAI's
MESSAGES = 4096
PARTS = 1024  # of a message's content
TOOLS = 128  # of a request: OpenAI's; and of calls in a message
NAME_CHARS = 256  # of a model, an author, a call, a schema
CHOICES = 16
STOPS = 16
STOP_CHARS = 1000
STOP_TOKENS = 128  # entries of stop_token_ids
BIASES = 1024  # entries of logit_bias: vLLM's
GRAMMAR_BYTES = 1 << 18  # of a JSON schema, a regular expression, choices, GBNF or Lark
CONSTRAINT_CHOICES = 4096
QUERY_BYTES = 1 << 12
REPEATED_BYTES = 1 << 20  # of the tools, or of text.format, of responses: they are repeated
STORED_INPUT_BYTES = 1 << 22  # of a request to responses
STORED_RESPONSES_BYTES = 1 << 26  # of the Responses API, of all API keys
LOGPROBS = 20  # per token: OpenAI's
PROMPT_LOGPROBS = 1 << 18  # entries of a response, about 100 bytes each
RESPONSE_LOGPROBS = 1 << 20  # the same of generated tokens

# Of the work that precedes the queue. A body above SMALL_BODY_BYTES, any grammar, and conversations
# that are not tiny are prepared in a worker process with these limits.
SMALL_BODY_BYTES = 1 << 15
REFERENCING_BYTES = 1 << 18  # of a body whose references are found in the event loop
TINY_BODY_BYTES = 1 << 11  # prepared in the event loop: less than a thread or a worker would cost
TINY_CPU_S = 0.02  # if one takes longer, later ones go to workers
TINY_PAUSE_S = 60.0  # for this time
LARGE_BODIES = 4  # memory of all bodies that are read or prepared, in largest bodies
HEAVY_WAITING = 64  # large bodies and grammars of a client that wait for the worker
PREPARATION_CPU_S = 3.0
PREPARATION_S = 20.0  # in the worker, at a low priority
PREPARATION_BYTES = 1 << 29
# What a grammar may cost when it is compiled: it is paid again in the server's process.
GRAMMAR_CPU_S = 1.0
GRAMMAR_COMPILED_BYTES = 1 << 26
GRAMMARS_BYTES = 1 << 31  # of all requests, with 20 MB per grammar for its growth during decoding

# (what, limit, HTTP status) for the documentation.
TABLE = (
    ("bytes of the request headers", HEAD_BYTES, 431),
    ("headers of a request", HEADERS, 431),
    ("bytes of a request line", REQUEST_LINE_BYTES, 431),
    ("pipelined requests of a connection", PIPELINED, 400),
    ("bodies in memory at a time, each of `--max-body-mb`", LARGE_BODIES, 503),
    ("large bodies and grammars of a client that wait to be prepared", HEAVY_WAITING, 429),
    ("prompts of completions", PROMPTS, 400),
    ("inputs of embeddings", INPUTS, 400),
    ("messages of a conversation", MESSAGES, 400),
    ("parts of a message's content", PARTS, 400),
    ("tools of a request, tool calls of a message", TOOLS, 400),
    ("characters of a name", NAME_CHARS, 400),
    ("choices of a prompt (`n`)", CHOICES, 400),
    ("stop strings", STOPS, 400),
    ("characters of a stop string", STOP_CHARS, 400),
    ("entries of `stop_token_ids`", STOP_TOKENS, 400),
    ("entries of `logit_bias`", BIASES, 400),
    ("bytes of a JSON schema or another grammar", GRAMMAR_BYTES, 400),
    ("bytes of stored responses; the least recently used are dropped", STORED_RESPONSES_BYTES, 404),
    ("bytes of the tools of responses, and of `text.format`", REPEATED_BYTES, 400),
    ("bytes of the input of a response that is stored", STORED_INPUT_BYTES, 400),
    ("bytes of a query string", QUERY_BYTES, 400),
    ("alternatives per token of `logprobs`", LOGPROBS, 400),
    ("log-probabilities of the prompts of a response", PROMPT_LOGPROBS, 400),
    ("log-probabilities of the generated tokens of a response", RESPONSE_LOGPROBS, 400),
    ("choices of `guided_choice` and `structured_outputs.choice`", CONSTRAINT_CHOICES, 400),
    ("seconds of CPU time to compile a grammar", GRAMMAR_CPU_S, 400),
    ("bytes of a compiled grammar", GRAMMAR_COMPILED_BYTES, 400),
    ("bytes of the compiled grammars of all requests", GRAMMARS_BYTES, 503),
    ("seconds of CPU time to prepare a request", PREPARATION_CPU_S, 400),
    ("seconds to prepare a request", PREPARATION_S, 400),
    ("bytes of memory to prepare a request", PREPARATION_BYTES, 400),
)
