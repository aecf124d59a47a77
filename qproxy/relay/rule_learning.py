"""The request rules of one turn: those of its account, and those that the account's rejections teach.

A rejection that a rule would have prevented is followed by one more attempt with the rule. If the upstream
accepts that, the account keeps the rule for the model (`accounts.learned_rules`). A rule that the operator
switched off is never tried.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from qproxy.accounts import Account
from qproxy.relay.policy import RelayPolicy
from qproxy.wire import tool_adapter
from qproxy.wire.dialects import UpstreamTarget, rejections, request_rules
from qproxy.wire.dialects.request_rules import RuleResult
from qproxy.wire.errors import RequestError, UpstreamError
from qproxy.wire.events import Turn

log = logging.getLogger("qproxy.relay")


class RuleLearning:
    """The rules that are applied to one turn, attempt by attempt."""

    def __init__(self, policy: RelayPolicy) -> None:
        self._policy = policy
        self._last: tuple[Account, UpstreamTarget] | None = None
        self._applied: tuple[str, ...] = ()
        self._trials: dict[Account, dict[str, bool]] = {}
        """Switches of the rules that are tried, by the account whose rejection suggested them."""

    def __repr__(self) -> str:
        return f"<RuleLearning with {sum(map(len, self._trials.values()))} trials>"

    def apply(self, turn: Turn, target: UpstreamTarget, account: Account) -> RuleResult:
        """Return the turn as this account's server expects it."""
        self._last = account, target
        result = self._result(turn, self._trials.get(account, {}))
        self._applied = result.applied
        return result

    def try_rules(self, error: UpstreamError, turn: Turn) -> bool:
        """Return whether another attempt has rules that change what the last one's account rejected."""
        suggested = rejections.rules_after(error)
        if not suggested or self._last is None:
            return False
        account = self._last[0]
        trial = self._trials.get(account, {})
        configured = {**self._policy.rule_switches, **account.rules}
        new = [name for name in suggested if name not in self._applied and name not in configured]
        turn, _ = tool_adapter.adapt_tools(turn, names=account.provider_family == "dashscope")
        try:
            applied = self._result(turn, {**trial, **dict.fromkeys(new, True)}).applied if new else ()
        except RequestError:  # the rule would drop what strict_params protects
            return False
        helpful = dict.fromkeys((name for name in new if name in applied), True)
        self._trials[account] = {**trial, **helpful}
        return bool(helpful)

    def record_accepted(self, account: Account, model: str) -> None:
        """Keep the rules that the accepted attempt was the trial of."""
        if self._trials and (learned := self._trials.get(account)):
            account.learned_rules.add(model, learned, account.wall_clock())
            log.info("account %s: learned for %s: %s", account.name, model, ", ".join(learned))

    def _result(self, turn: Turn, trial: Mapping[str, bool]) -> RuleResult:
        assert self._last is not None
        account, target = self._last
        return request_rules.apply_rules(
            turn,
            model=target.model,
            spec=target.spec,
            family=target.family,
            native=target.native,
            switches={**trial, **account.rule_switches(target.model, self._policy.rule_switches)},
            strict_params=self._policy.strict_params,
            forced_tools=self._policy.forced_tools,
        )
