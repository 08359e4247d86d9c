"""Webhooks in: what others send to an address of an agent, in the agent's own database before they are told that it came.

signatures.py  who may have sent it: pure
delivery.py    one delivery, and the statement that stores it
spool.py       deliveries on the host's disk, while a database cannot take them
store.py       the rows of hooks, in the control database
receiver.py    from a request to an answer, and from the spool to the database
hooks.py       the service: hooks and their secrets
"""
