"""A `python` for commands of tests that has imported torch, transformers and hfcap before it is started.

Importing them takes 10 seconds of processor time, more than most commands that tests start. `client.py` stands in for
the interpreter: it has the process that imported them (`server.py`) fork, and gives the fork its arguments, variables,
folder and streams. The fork is a process of its own that ends as it likes; the client passes signals on to it, and ends
as it ended. What a fork cannot do (other variables that libraries read on import, options of the interpreter), the
interpreter itself does.

Not for tests of what is imported when, nor of how the interpreter ends, nor for those that end a process by SIGKILL and
look at once at what it left: the fork ends a moment after its client.
"""
