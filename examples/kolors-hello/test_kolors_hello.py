"""What the kernel expects of every text encoder, run on this one: the tests a plugin's author writes."""

from kolors_hello import Hello

from kolors_kernel.testing import TextEncoderContract


class TestHello(TextEncoderContract):
    """Hello keeps the contract of its kind."""

    config = Hello.tiny()
