"""Access to the operating system.

sockets      reads and writes of plain sockets with one system call
directories  directories that only their owner may read
sqlite       SQLite connections with the same settings everywhere
pidfile      the file that names the process that serves a port
exposure     whether an address is reachable from other machines
launch       detection of Hypercorn's command
"""
