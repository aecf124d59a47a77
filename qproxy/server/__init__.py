"""HTTP with the client.

app        `Server`: the Quart-Trio app, and what happens around every request
parts      what it stands on; `Route` and `Family`: how routes are told
asking     the routes that ask a model, whole and streamed (`streaming`)
embedding  the route for embeddings
plain      models, health
describing the OpenAPI document
refusals   errors as responses
current    the request being served

A new family of routes is a class with `routes()`, appended to `Server.families` in `serving`; every route says who
may use it (`door.Access`).
"""

from qproxy.server.app import Server
from qproxy.server.parts import Family, Parts, Route

__all__ = ["Family", "Parts", "Route", "Server"]
