"""Members in a PostgreSQL database (extra `postgres`), for servers on several machines.

    connection   the database's address without its password; time limits of connections and statements
    schema       tables, their versions, partitions by month
    queries      queries in SQL
    ledger       the usage ledger, with a local file for rows while the database is away

psycopg is known here alone. It is called in the ledger's thread: its asynchronous connections run on asyncio
only. Times are Unix seconds in double precision, as in the ledger file, so that one row is equal in both.
"""
