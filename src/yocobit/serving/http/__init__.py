"""HTTP: server, connections, middleware, JSON bodies, server-sent events, OpenAPI, chat page."""
