"""The files that the members of a configuration use, for the factory and for checks of their modes and
content."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qproxy.config import Config, data_dir
from qproxy.config.accounts import AccountConfig
from qproxy.config.ledger import is_database_url, ledger_file

CREDENTIAL_FILE = "oauth_creds.json"
"""qwen-code's name for it."""
FILES_DATABASE = "files.sqlite3"
"""Name in the directory of clients' files."""
CREDENTIAL_COPY = "shared_creds.json"


def credential_path(account: AccountConfig) -> Path:
    """Return the account's credential file: in the data directory, or where the settings say."""
    if account.credentials is None:
        return data_dir() / "accounts" / account.name / CREDENTIAL_FILE
    path = Path(account.credentials).expanduser()
    return path if path.suffix == ".json" else path / CREDENTIAL_FILE


def credential_copy_path(account: AccountConfig) -> Path:
    """Return the copy of the account's tokens in `shared_state`."""
    return data_dir() / "accounts" / account.name / CREDENTIAL_COPY


def shared_keys_copy(config: Config) -> Path | None:
    """Return the copy of the API keys in `shared_state`, beside the file of those without it."""
    return Path(config.keys_file).with_suffix(".shared.json") if config.keys_file else None


def secret_files(config: Config) -> Iterator[tuple[str, Path]]:
    """Give the files with secrets or their digests, by what they are."""
    if config.keys_file:
        yield "keys of clients", Path(config.keys_file)
    if config.shared_state is not None and (copy := shared_keys_copy(config)) is not None:
        yield "copy of the shared keys of clients", copy
    if config.admin_key_file:
        yield "admin key", Path(config.admin_key_file).expanduser()
    if config.ledger_password_file:
        yield "password of the ledger", Path(config.ledger_password_file).expanduser()
    if config.shared_state_password_file:
        yield "password of the shared state", Path(config.shared_state_password_file).expanduser()
    if config.shared_state_key_file:
        yield "encryption keys of the shared state", Path(config.shared_state_key_file).expanduser()
    if config.compaction_key_file:
        yield "key of compaction items", Path(config.compaction_key_file).expanduser()
    for account in config.accounts:
        if account.kind == "oauth":
            shared = config.shared_state is not None
            path = credential_copy_path(account) if shared else credential_path(account)
            yield f"tokens of {account.name}", path


def databases(config: Config) -> Iterator[tuple[str, Path]]:
    """Give the SQLite files, by what they are."""
    if config.account_state_file:
        yield "accounts' state", Path(config.account_state_file)
    if (ledger := ledger_file(config.ledger)) is not None:
        yield "usage ledger", ledger
    if is_database_url(config.ledger) and config.ledger_spool_file:
        yield "spool of the usage ledger", Path(config.ledger_spool_file)
    if config.store_responses and config.responses_file:
        yield "responses", Path(config.responses_file)
    if config.files_directory:
        yield "files of clients", Path(config.files_directory) / FILES_DATABASE
