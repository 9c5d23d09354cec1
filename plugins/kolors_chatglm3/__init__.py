"""ChatGLM3-6B-Base as the text encoder (2.1.1)."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the text encoder."""
    from kolors_chatglm3.config import ChatGLM3

    return [ChatGLM3]
