"""The ASGI app: Quart-Trio, a fast path beside its router, and everything around a request.

app              `Server`: the app of one `ServerState`, and the swap at a reload
state            `ServerState`: every part of a running server; `Route` and `RouteGroup`
middleware       runs before and after every request
fast_path        serves requests to models without Quart's router
request_context  the request being served

authentication   API keys, the admin key; who may use a route (`Access`)
host_policy      addresses and host names without keys; DNS rebinding
cors             web pages of other origins
request_body     limits of a request; its body as JSON
content_codings  compressed request bodies
usage_limits     rate limits and budgets of API keys
in_flight        requests in flight, and how they are ended
streaming        streamed response bodies
http_response    responses on either path
error_handlers   errors as responses
health           the state that `/readyz` reports
response_store   the interface of stored responses
stores           the stores that are opened together
conversation_store   the interface of conversations
response_runs    the interface of responses' events, and of those that are generated apart from their client
asgi_client      the app without a socket, for Trio programs (`in_process_response`: one request)
httpx_transport  the same for SDKs, as a transport of `httpx2` or `httpx`
routes/          one group of routes per module

A new group of routes is a class with `routes()`, passed to `Server` as an extension; every route declares its
`Access`.
"""

from qproxy.server.app import App, Server
from qproxy.server.state import Route, RouteGroup, ServerState

__all__ = ["App", "Route", "RouteGroup", "Server", "ServerState"]
