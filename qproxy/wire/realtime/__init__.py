"""OpenAI's Realtime protocol, spoken with Qwen's realtime models, which speak almost the same one.

Pure: the text of an event in, events out.  The differences are few and each has its place:

  event_names.py     names of server events: the beta's and today's
  session_config.py  a session's settings: flat, nested, Qwen's; formats, voices, tools, turn detection
  audio.py           24 kHz to 16 kHz
  client_events.py   from the client: what Qwen hears
  server_events.py   from Qwen: what the client is told
  session.py         events on their way, errors as events
  translator.py      both ways at once
  urls.py            URLs

Sources: Alibaba's pages on client and server events of Qwen-Omni-Realtime, OpenAI's reference as its own client's types
have it (the judge of the tests), qwen-code and DashScope's SDK for what the pages do not say.
"""

from qproxy.wire.realtime.session import ToClient, ToUpstream, TranslatedEvent
from qproxy.wire.realtime.translator import SessionTranslator
from qproxy.wire.realtime.urls import default_realtime_url, session_url

__all__ = [
    "SessionTranslator",
    "ToClient",
    "ToUpstream",
    "TranslatedEvent",
    "default_realtime_url",
    "session_url",
]
