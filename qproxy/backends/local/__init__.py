"""Members for the processes of one machine: small locked files, SQLite databases, and memory.

Each module is one member, with its file format beside it (`key_file`, `credential_file`, `ledger_schema`). A
file is opened on first use, readable by its owner only, and survives a process that is killed at any moment.
"""
