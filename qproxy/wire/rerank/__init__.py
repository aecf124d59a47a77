"""Rerank: documents ordered by their relevance to a query.

    request    what clients send, in the shapes of Cohere, Jina, vLLM and TEI
    response   the same shapes of the response
    upstream   Model Studio's two services, and the routes of own servers

The shape of a response follows the route and the fields of the request (`Shape`).
"""

from qproxy.wire.rerank.request import SCHEMA, Document, RerankInput, Shape, decode
from qproxy.wire.rerank.response import RankedDocument, RerankOutput, response

__all__ = [
    "SCHEMA",
    "Document",
    "RankedDocument",
    "RerankInput",
    "RerankOutput",
    "Shape",
    "decode",
    "response",
]
