"""The families of routes beside text: a row makes the routes of one family.

Each has a folder in `wire`, and a module of the same name in `relay`, here and in `emulator`.
"""

from __future__ import annotations

from collections.abc import Callable

from qproxy.server.routes.batches import BatchRoutes
from qproxy.server.routes.client_secrets import ClientSecretRoutes
from qproxy.server.routes.decisions import DecisionRoutes
from qproxy.server.routes.files import FileRoutes
from qproxy.server.routes.images import ImageRoutes
from qproxy.server.routes.moderation import ModerationRoutes
from qproxy.server.routes.rerank import RerankRoutes
from qproxy.server.routes.speech import SpeechRoutes
from qproxy.server.routes.transcription import TranscriptionRoutes
from qproxy.server.routes.uploads import UploadRoutes
from qproxy.server.state import RouteGroup, StateHolder

FAMILIES: tuple[Callable[[StateHolder], RouteGroup], ...] = (
    ClientSecretRoutes,
    BatchRoutes,
    DecisionRoutes,
    FileRoutes,
    ImageRoutes,
    ModerationRoutes,
    RerankRoutes,
    SpeechRoutes,
    TranscriptionRoutes,
    UploadRoutes,
)
