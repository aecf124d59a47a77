"""The pure half of qproxy: bytes and records in, bytes and records out.

    client bytes → endpoints.chat.decode → Turn ─┐         ┌→ endpoints.chat.Encoder → client bytes
                                                 │  relay  │
    dialects.X.request ← target, Turn ───────────┘         └─ events ← tool_calls ← dialects.X.Decoder ← bytes

No Trio, no clock, no files, no sockets, no randomness (ids and times come in with the `Turn`), no logging:
`tests/test_architecture.py` enforces it. So this package can be tested, replayed and reasoned about as
functions of bytes.

Contracts
    stage      `feed(item) -> iterable of outputs` and `close() -> iterable of outputs` (`pipeline`).
    dialect    the protocol of a Qwen server: `request(turn, target) -> HTTPRequest`; `Decoder`, a stage from
               server-sent events to events; `response(body) -> events`. Table: `dialects.DIALECTS`.
               For embeddings `embeddings_request(input, target) -> HTTPRequest`;
               `embeddings.parse_response` reads the responses of both dialects.
    endpoint   the protocol of a client: `decode(body, ...) -> Turn`; `Encoder`, a stage from events to bytes;
               `response(turn, events) -> object`; `Api`, its errors and headers.
               Table: `endpoints.ENDPOINTS`.
               `endpoints.embeddings` is separate: it requests vectors (`embeddings`), not a turn.
    realtime   separate too: one protocol in three variants (OpenAI's two, Qwen's), event by event
               (`SessionTranslator`).
    models     what is known of models, as data: a `ModelCatalog` passed to the code that needs it (`models`).
    tokens     of a text: by classes of words (`token_estimate`), by its length (`token_ratios`), or by a
               server (`dialects.tokenizers`).
    tool calls the ways in which Qwen models write calls and reasoning: one stage from events to events.

A new member of a family is one file, one row in its table, and tests with recorded bytes. No module
translates a client's format straight into an upstream's: N + M, never N × M.

What leaves `tool_calls` (and so what every Encoder may rely on), per choice:
    1. `ToolCallStart` comes before its `ToolCallArgumentsDelta`; indices are dense from 0 in order of
       appearance; ids are unique; a header is never sent without a name.
    2. Calls come one after the other: no `ToolCallArgumentsDelta` of a call after the next `ToolCallStart`.
       The concatenated `ToolCallArgumentsDelta` of a call are what the model wrote; `{}` if it wrote nothing.
    3. Exactly one `ChoiceFinished`, last, with stop, length, tool_calls or content_filter; `tool_calls`
       exactly when calls were sent and the model was not truncated.
    4. After `StreamFailed` nothing follows.
"""
