"""The dashboard: what a running server shows to whoever runs it, and the few things that can be done there.

routes      the family of routes: every page by its path, errors as pages
rendering   what every page is made of: templates, header fields, static files
auth        who may come in: the login, the session's cookie, the token of every form, guesses
sessions    what a cookie says; pure
views/      one family of pages a module, gathered by `DashboardRoutes`
charts      numbers as shapes for SVG; pure
summaries   a row of the ledger as sentences; pure
formatting  numbers and times for people; pure

Pages are made here, on the server, from templates that escape whatever they are given; the one script refreshes what
moves, copies, and shows a streamed answer.  Nothing is fetched from elsewhere.  A view knows the server's parts and
nothing of HTTP but its `PageRequest`.
"""

from qproxy.dashboard.auth import end_stale_sessions
from qproxy.dashboard.routes import DashboardRoutes

__all__ = ["DashboardRoutes", "end_stale_sessions"]
