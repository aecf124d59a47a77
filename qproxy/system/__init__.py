"""What is asked of the operating system.

sockets      plain sockets read and written at once, without a wait that is not needed
directories  directories that only this user may read
sqlite       SQLite connections with the same settings everywhere
pidfile      the file that says which process serves a port
"""
