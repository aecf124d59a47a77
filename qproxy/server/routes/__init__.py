"""The families of routes, one a module.

generate      those that ask a model, whole and streamed
responses     what `/responses` remembers, and the routes that read it
embeddings    the route for embeddings
families      the families beside text, as a table: rerank, ...
realtime      `/realtime`, a WebSocket
info          models, health
metrics       `/metrics`
admin_login   the admin routes that sign an account in
openapi       the OpenAPI document
"""
