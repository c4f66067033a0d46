"""The shipped configs. A config in another folder can import them: `from configs import common`."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)  # configs of a user's folder can import each other
