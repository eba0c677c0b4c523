"""The leader: one process at a time, by a lock that its session holds, does what must be done once.

Everything it decides goes through the very session that holds the lock, one statement after the other: a leader whose session
has ended cannot write, and one that hangs is ended by the server (its session's timeouts). No clock decides who leads.
"""

from pgsched.leader.election import Leader

__all__ = ["Leader"]
