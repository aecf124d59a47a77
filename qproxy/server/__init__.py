"""HTTP with the client.

app         `Server`: the Quart-Trio app
parts       what it stands on; `Route` and `Family`: how routes are told
around      what happens around every request
lane        the way of requests that ask a model, beside Quart's router
current     the request being served

asking      the routes that ask a model, whole and streamed (`streaming`)
responses   what `/responses` remembers, and the routes that read it
embedding   the route for embeddings
plain       models, health
monitoring  `/metrics`
signing_in  the admin routes that sign an account in
describing  the OpenAPI document

charging    what a request costs its key
reply       a response, whichever way it goes out
refusals    errors as responses

A new family of routes is a class with `routes()` and an entry of `Server.families`; every route says who may use it
(`door.Access`).
"""

from qproxy.server.app import Server
from qproxy.server.state import Route, RouteGroup, ServerState

__all__ = ["RouteGroup", "ServerState", "Route", "Server"]
