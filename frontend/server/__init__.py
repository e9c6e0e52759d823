from dynamo.frontend.server.exchange import Exchange, Handle, HeaderBlock, RenderError, render_headers

__all__ = ["Exchange", "Handle", "HeaderBlock", "RenderError", "render_headers"]
