"""The shipped configs. A config in any other folder named `configs` can import them: `from configs import common`."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)  # so that pages of such a folder can import each other, too
