"""Encoded prompts kept on disk, so that a run whose prompts are known never loads the text encoder."""

from kolors_kernel import ComponentConfig, hookimpl


@hookimpl
def kolors_components() -> list[type[ComponentConfig]]:
    """Return the text encoder that remembers."""
    from kolors_prompt_cache.config import PromptCache

    return [PromptCache]
