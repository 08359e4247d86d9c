"""Routes, one module per noun. Models are `tenure.wire`; each route but health names its action: `access.requires`."""

from tenure import wire
from tenure.wire import connections as _connections

# The models build their validators at first use, for the command line's sake. A server needs all of them, and FastAPI
# wants them whole.
for _room in (wire, _connections):
    for _model in vars(_room).values():
        if isinstance(_model, type) and issubclass(_model, (wire.Request, wire.Answer)):
            _model.model_config["defer_build"] = False
            _model.model_rebuild(force=True)
