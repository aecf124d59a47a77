"""The dashboard: pages about a running server for its operator.

routes      routes of all pages; errors as pages
rendering   templates, response headers, static files
auth        login, session cookies, form tokens, limits on wrong keys
sessions    the signed session cookie; pure
views/      one group of pages per module
charts      numbers as shapes for SVG; pure
summaries   a row of the ledger as sentences; pure
formatting  numbers and times for people; pure

Pages are rendered on the server from templates that escape every value; one script refreshes live parts,
copies text and shows a streamed response. Nothing is loaded from other hosts. Views use the server's state,
and of HTTP only their `PageRequest`.
"""

from qproxy.dashboard.auth import end_stale_sessions
from qproxy.dashboard.routes import DashboardRoutes

__all__ = ["DashboardRoutes", "end_stale_sessions"]
