"""What every test stands on."""

from hypothesis import settings

# The same examples in every run; `scripts/fuzz` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")
