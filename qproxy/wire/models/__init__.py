"""Data about models, with its date, and the lookup of a name's row.

models.toml    the knowledge itself: families, prices, retirements, with an *as of* date and its sources
spec           `ModelSpec`, one row; a cell that is not known is None
catalog        `ModelCatalog`: a name to its row, by exact id, snapshot, or the newest known of its line
retirement     which names a request goes through: its alias, and the successor of a model that is retired

Pure: the file is read where parts are put together (`bootstrap.models`), and the catalog is an argument of
whatever needs it. No other module knows a model by its name, which a test keeps; operators add and change
rows in `[[models]]`.
"""

from qproxy.wire.models.catalog import CatalogError, ModelCatalog
from qproxy.wire.models.spec import ModelRow, ModelSpec

__all__ = ["CatalogError", "ModelCatalog", "ModelRow", "ModelSpec"]
