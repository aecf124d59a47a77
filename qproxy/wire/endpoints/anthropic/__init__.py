"""`/v1/messages`: Anthropic's Messages API, in and out, for Claude Code and every other client of it.

    body ─ request → Turn                                events ─ encoder.Encoder → bytes
           conversation, content_blocks, system_prompt,           response → object
           tool_results, tools, thinking

    request         the fields, and the turn that they ask for (`decode`; `decode_count` for counting)
    request_headers  what headers add to it
    conversation    messages as chat messages
    content_blocks  text, pictures, documents as content parts; notes for what was left out
    system_prompt   the system prompt, and reminders in mid-conversation
    tool_results    results as tool messages
    tools           tools and tool_choice
    thinking        how much to think
    signatures      of thinking blocks
    tool_ids        ids that both sides take
    encoder         events as server-sent events
    response        the fold of the same events as a whole answer
    message         what both share: the message object, why it ends
    usage           counts in Anthropic's words
    errors, models  in Anthropic's shape
    anthropic_api   all that its endpoints share, as a record

The decisions: what Claude alone understands is left out and named, never refused; the prompt of a
conversation stays the same from request to request, so that caches of prefixes hit; blocks leave one at a
time, whatever order events come in.
"""

from qproxy.wire.endpoints.anthropic.anthropic_api import ANTHROPIC
from qproxy.wire.endpoints.anthropic.encoder import Encoder
from qproxy.wire.endpoints.anthropic.request import decode, decode_count, request_schema
from qproxy.wire.endpoints.anthropic.response import response

__all__ = ["ANTHROPIC", "Encoder", "decode", "decode_count", "request_schema", "response"]
