"""The supervisor: a small parent process that starts workers, ends them in time, and certifies their deaths.

Who decides. Postgres decides whether a worker's sessions live; nobody there can know whether its *process* does. The parent can:
it is on the same machine, and the kernel tells it. So the parent, and only it, may say "this worker and all its children have
ended", and on its word the jobs go back at once; without a parent the leader waits for the worker's `rescue` time.

What local time may decide. A worker writes on its `board`, a page of memory that it shares with the parent, when the last
answered heartbeat of its lease was *sent*, when its event loop last moved, and which claims have begun. At `kill` after that
heartbeat the parent ends the process if anything runs in it, or if it has not moved: a worker that was stopped (SIGSTOP), that is
stuck in C code, or that is swapped out cannot do so itself.

What each failure comes to.
- The worker dies: the parent kills what it left behind (its process group, whoever carries its tag, orphans), reaps it, calls
  `rescue` on a session of its own with the claims that are to be charged, and starts another.
- The parent dies: the kernel kills its workers (parent-death signal; elsewhere they notice a closed pipe). Nobody certifies.
- Both are stopped: nobody ends them. The leader takes the jobs; what the handlers still do is what the fence is for.
- The database is away: the certificate is kept and presented when it is back.
"""
