"""Routes, one module per noun. Models are `tenure.wire`; each route but health names its action: `access.requires`."""
