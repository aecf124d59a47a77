"""The search of one request for a fallback model, one error after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qproxy.relay.fallbacks import FallbackRule, can_serve, cause_of, fallback_models
from qproxy.relay.model_names import ModelNames
from qproxy.wire.errors import QproxyError, RequestError
from qproxy.wire.events import Turn
from qproxy.wire.token_estimate import prompt_size
from qproxy.wire.token_ratios import TokenRatios


class FallbackSearch:
    """The fallback models of one request; each is tried once."""

    def __init__(
        self,
        turn: Turn,
        names: Sequence[str],
        first_error: QproxyError,
        model_names: ModelNames,
        rules: Sequence[FallbackRule],
    ) -> None:
        """`names` are those of the request's own model; its error is the client's if no model can serve."""
        self.first_error = first_error
        self.cause = ""
        """The cause of the last error."""
        self._turn = turn
        self._names = names
        self._model_names = model_names
        self._rules = rules
        self._tried: set[str] = set()
        self._exceeded = 0
        """The largest context that was too small."""

    def __repr__(self) -> str:
        return f"<FallbackSearch for {self._names[-1]}, {len(self._tried)} tried>"

    def next(
        self, failed: str, error: QproxyError, permits: Callable[[str], bool], ratios: TokenRatios
    ) -> str | None:
        """Return the model to try after another one failed; None if there is none."""
        catalog = self._model_names.catalog
        cause = cause_of(error, is_known=bool(self._tried) or catalog.find(failed) is not None)
        self._tried.add(failed)
        if cause is None:
            return None
        self.cause = cause
        if cause == "context":
            self._exceeded = max(self._exceeded, catalog.get(failed).context or 0)
        size = prompt_size(self._turn)
        for name in fallback_models(self._rules, self._names, cause):
            try:
                model = self._model_names.route(name).served
            except RequestError:  # it is retired itself
                continue
            spec = catalog.get(model)
            fits = spec.context is None or spec.context > self._exceeded
            if model in self._tried or not fits or not permits(model):
                continue
            if can_serve(spec, self._turn, ratios.estimate(model, size).prompt):
                return model
        return None
