from dynamo.frontend.server.exchange import Exchange, Handle, HeaderBlock, RenderError, render_headers
from dynamo.frontend.server.limits import Limits
from dynamo.frontend.server.native import NativeServer, tls_context

__all__ = [
    "Exchange",
    "Handle",
    "HeaderBlock",
    "Limits",
    "NativeServer",
    "RenderError",
    "render_headers",
    "tls_context",
]
