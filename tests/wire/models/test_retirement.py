"""The resolution of a model's name: alias, then retirement."""

import pytest

from qproxy.wire.errors import RequestError
from qproxy.wire.model_aliases import ModelAliases
from qproxy.wire.models import ModelCatalog
from qproxy.wire.models.retirement import find_route, retirement_warnings

CATALOG = ModelCatalog({
    "models": [
        {"id": "old", "retires": "2026-10-10", "successor": "newer"},
        {"id": "newer", "retires": "2026-11-01", "successor": "newest"},
        {"id": "newest"},
        {"id": "lost", "retires": "2026-10-10"},
        {"id": "ring", "retires": "2026-10-10", "successor": "ring"},
    ]
})  # fmt: skip
ALIASES = {"gpt": "old", "fine": "newest", "old": "newest"}


def route(name, today="2026-12-01", aliases=ALIASES, served=(), use_successor=True):
    return find_route(
        name,
        ModelAliases(aliases),
        CATALOG,
        today=today,
        is_served=lambda model: model in served,
        use_successor=use_successor,
    ).names


WAYS = {
    "no alias, not retired": ("newest", {}, ("newest",)),
    "an unknown name": ("llama", {}, ("llama",)),
    "an alias": ("fine", {}, ("fine", "newest")),
    "an alias before retirement": ("old", {}, ("old", "newest")),
    "an alias of a retired model": ("gpt", {}, ("gpt", "old", "newer", "newest")),
    "a successor that is not retired yet": ("gpt", {"today": "2026-10-31"}, ("gpt", "old", "newer")),
    "before the day": ("gpt", {"today": "2026-10-09"}, ("gpt", "old")),
    "on the day": ("gpt", {"today": "2026-10-10"}, ("gpt", "old", "newer")),
    "a model that an account still has": ("gpt", {"served": ["old"]}, ("gpt", "old")),
    "a successor that an account still has": ("gpt", {"served": ["newer"]}, ("gpt", "old", "newer")),
    "served, though successors are not used": ("gpt", {"served": ["old"], "use_successor": False},
        ("gpt", "old")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "settings", "names"), WAYS.values(), ids=WAYS)
def test_resolved_names(name, settings, names):
    """The client's name is first, the served one last, and every intermediate name between."""
    assert route(name, **settings) == names


@pytest.mark.parametrize(
    ("name", "use", "words"),
    [
        ("old", False, "The model 'old' was retired on 2026-10-10. Use 'newest'."),
        ("lost", True, "The model 'lost' was retired on 2026-10-10."),
        ("ring", True, "The model 'ring' was retired on 2026-10-10. Use 'ring'."),
    ],
)
def test_a_retired_model_names_its_successor(name, use, words):
    """Without a permitted replacement, the 404 names the model to use, which is not itself retired."""
    with pytest.raises(RequestError) as caught:
        route(name, aliases={}, use_successor=use)
    error = caught.value
    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")
    assert error.message == words


def test_warnings_before_retirement():
    """Models that are retired or soon will be are named, each once."""
    names = ["old", "newer", "newest", "old", "llama"]
    assert retirement_warnings(names, CATALOG, "2026-10-12", "2026-11-11") == [
        "model 'old' was retired on 2026-10-10: use newer.",
        "model 'newer' will be retired on 2026-11-01: use newest.",
    ]
    assert retirement_warnings(names, CATALOG, "2026-09-01", "2026-10-01") == []
