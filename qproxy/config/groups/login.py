"""Logins of Qwen accounts."""

from __future__ import annotations

from dataclasses import dataclass

from qproxy.config.setting import setting


@dataclass(frozen=True)
class LoginSettings:
    """Logins of Qwen accounts."""

    oauth_device_url: str = setting(
        "https://chat.qwen.ai/api/v1/oauth2/device/code", "device authorization endpoint of Qwen accounts"
    )
    oauth_token_url: str = setting(
        "https://chat.qwen.ai/api/v1/oauth2/token", "token endpoint of Qwen accounts"
    )
    oauth_client_id: str = setting(
        "f0304373b74a44d2b584a3fb70ca9e56", "client ID for logins (a public client)"
    )
    oauth_scope: str = setting("openid profile email model.completion", "scope of logins")
    oauth_hosts: list[str] = setting(
        [
            *("portal.qwen.ai", "chat.qwen.ai", "dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
            *("dashscope-us.aliyuncs.com", "cn-hongkong.dashscope.aliyuncs.com"),
        ],
        "hosts that may receive the tokens of Qwen accounts, over HTTPS; `*` stands for one label; an "
        "origin (http://127.0.0.1:8788) is allowed as well",
    )
    oauth_interval: float = setting(
        5.0, "seconds between polls of the device-code endpoint, unless the identity server sets its own"
    )
    oauth_timeout: float = setting(30.0, "maximum seconds for a response of the identity server")
    oauth_refresh_margin: float = setting(
        1200.0,
        "seconds before its expiry at which a token is refreshed, with 25 % jitter; at the latest 30 s "
        "before",
    )
    encrypt_credentials: bool = setting(
        False, "encrypt the tokens on disk with a key in the system keyring (requires the extra `keyring`)"
    )
