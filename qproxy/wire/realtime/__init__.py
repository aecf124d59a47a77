"""OpenAI's Realtime protocol for Qwen's realtime models, whose protocol is almost the same.

Pure: the text of an event in, events out. Each difference has its module:

  event_names.py     names of server events: the beta's and the current ones
  session_config.py  a session's settings: flat, nested, Qwen's; formats, voices, tools, turn detection
  audio.py           24 kHz to 16 kHz
  client_events.py   client events for Qwen
  server_events.py   Qwen's events for the client
  session.py         translated events, and errors as events
  translator.py      both directions
  urls.py            URLs

Sources: Alibaba's pages on client and server events of Qwen-Omni-Realtime, OpenAI's reference as typed by its
own client (the judge of the tests), qwen-code and DashScope's SDK for what the pages omit.
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
