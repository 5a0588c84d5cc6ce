"""Serves the page to this machine alone, with nothing on it that comes from another."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from unlearning_adapters.errors import ConfigError

HOST = "127.0.0.1"
EXTRA = "pip install 'unlearning-adapters[app]'"
# The browser itself refuses whatever would leave the machine.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; frame-src 'self' data: blob:; form-action 'self'; base-uri 'self'"
)
Scope = dict[str, Any]
Send = Callable[[Any], Awaitable[None]]


class OwnOriginOnly:
    """Adds the policy to every answer; an ASGI middleware.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Answer a request."""

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self.app(scope, receive, with_policy)


def import_gradio() -> Any:
    """Return gradio, told to report to nobody.

    Raises:
        ConfigError: If it is not installed, or is too old.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio

        major = int(gradio.__version__.split(".")[0])
    except Exception as error:  # an old Gradio fails with an error of another package
        raise ConfigError(f"The page needs Gradio 6, which cannot be imported: {error}. Run {EXTRA}.") from error
    if major < 6:
        raise ConfigError(
            f"The page needs Gradio 6, but this is {gradio.__version__}, to which pip falls back beside pillow 13. "
            f"Run {EXTRA}."
        )
    return gradio


def serve(page: Any, port: int | None, browser: bool = False, block: bool = True) -> str:
    """Serve a page on 127.0.0.1 until Ctrl-C.

    Args:
        page: What `make_page` returned.
        port: The port; None takes the first that is free from 7860 on.
        browser: Whether to open a browser.
        block: Whether to wait for Ctrl-C.

    Returns:
        The address.

    Raises:
        ConfigError: If the port is taken.
    """
    from starlette.middleware import Middleware

    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            inbrowser=browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            footer_links=[],
            app_kwargs={"middleware": [Middleware(OwnOriginOnly)], "docs_url": None, "redoc_url": None},
            **page.unlearning_look,
        )
    except OSError as error:
        raise ConfigError(f"Cannot serve the page on port {port}: {' '.join(str(error).split())[:160]}") from error
    if block:
        print(f"{address} (Ctrl-C ends it)", flush=True)
        page.block_thread()
    return str(address)
