"""Ways into offices for programs that do not speak the API: SSH, and HTTP of what an office serves itself.

keys.py        public keys of principals: what is accepted as one, and the table of them
host_key.py    the gateway's own key
arrivals.py    which connections may wait to authenticate: pure
ssh.py         the listener: limits, authentication, what a connection may ask for
session.py     one shell, command or sftp, as a session of the office's door
forward.py     one forwarded connection to the office's loopback
flow.py        back-pressure between an SSH channel and the door
passes.py      who may see a preview: one-time tickets and signed cookies
preview.py     the previews' host names, and what every request to one of them must pass
headers.py     which headers cross a preview, either way: pure
exchange.py    one HTTP request carried to the office
websocket.py    one WebSocket carried to the office
pages.py       what a person sees who may not pass, or whose office does not answer
"""
