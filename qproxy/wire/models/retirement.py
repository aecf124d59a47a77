"""The names that a request's model goes by: what the client asked for, what an alias stands for, a successor.

The order is alias, then retirement. A model that is retired by the catalog's date is served all the same
where an account still has it: the servers know best. Days are ISO 8601, so that they compare as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qproxy.wire.errors import RequestError
from qproxy.wire.model_aliases import ModelAliases
from qproxy.wire.models.catalog import ModelCatalog
from qproxy.wire.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """Every name on a request's way, the client's first and the served one last."""

    names: tuple[str, ...]
    is_alias: bool = False
    """Whether the first name is an alias of the second one."""
    retired: tuple[ModelSpec, ...] = ()
    """The retired models that successors replace."""
    replaced: str = ""
    """The retired model that a fallback replaces."""

    @property
    def served(self) -> str:
        return self.names[-1]

    @property
    def models(self) -> tuple[str, ...]:
        """Return the models among the names: all but an alias."""
        return self.names[self.is_alias :]

    @property
    def notes(self) -> tuple[str, ...]:
        """Return the message for the client."""
        if self.replaced:
            return (f"model {self.served}: {self.replaced[:200]} is retired",)
        return tuple(
            f"model {spec.successor}: {spec.id} was retired on {spec.retires}" for spec in self.retired
        )


def find_route(
    name: str,
    aliases: ModelAliases,
    catalog: ModelCatalog,
    *,
    today: str,
    is_served: Callable[[str], bool],
    use_successor: bool,
) -> ModelRoute:
    """Return the route of a request for `name`. Raise RequestError 404 for a retired model without a
    successor."""
    model = aliases.lookup(name)
    names = [name] if model is None else [name, model]
    retired: list[ModelSpec] = []
    while (spec := retired_spec(names[-1], catalog, today)) is not None and not is_served(names[-1]):
        if not use_successor or spec.successor is None or spec.successor in names:
            raise retired_error(names[-1], spec, today=today, catalog=catalog)
        retired.append(spec)
        names.append(spec.successor)
    return ModelRoute(tuple(names), model is not None, tuple(retired))


def retired_spec(name: str, catalog: ModelCatalog, today: str) -> ModelSpec | None:
    """Return the row of a model that is retired by now; None for any other."""
    spec = catalog.find(name)
    return spec if spec is not None and spec.retires is not None and spec.retires <= today else None


def retired_error(name: str, spec: ModelSpec, *, catalog: ModelCatalog, today: str) -> RequestError:
    """Return the 404 for a retired model, which names the one to use."""
    last = spec
    while last.successor and (following := retired_spec(last.successor, catalog, today)) not in (None, last):
        assert following is not None
        last = following
    advice = f" Use {last.successor!r}." if last.successor else ""
    message = f"The model {name[:200]!r} was retired on {spec.retires}.{advice}"
    return RequestError(message, status=404, param="model", code="model_not_found")


def retirement_warnings(names: Iterable[str], catalog: ModelCatalog, today: str, until: str) -> list[str]:
    """Return a line for each of the models that is retired, or will be until a day."""
    found = []
    for name in dict.fromkeys(names):
        spec = catalog.find(name)
        if spec is not None and spec.retires is not None and spec.retires <= until:
            when = "was retired" if spec.retires <= today else "will be retired"
            use = f": use {spec.successor}" if spec.successor else ""
            found.append(f"model {name!r} {when} on {spec.retires}{use}.")
    return found
