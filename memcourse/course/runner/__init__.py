"""What runs beside an answer that nobody trusts.

This folder, and a copy of the library without the course, are all that such a process gets to see of memcourse: the
folder is copied and becomes a package of its own, so nothing here imports anything but Python, NumPy, torch and what
lies beside it.  `wire` carries messages, `peer` is one end of a conversation, `answering` the untrusted one,
`zygote` the process that all answers are forked from, `confine` what an answer may do.
"""
