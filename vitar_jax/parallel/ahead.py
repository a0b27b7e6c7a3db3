"""Programs that are compiled before their first call, while the host does other things."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def compile_ahead(function: Any, *arguments: Any) -> Callable[..., Any]:
    """Starts to compile a jitted function on a thread of its own and returns it; its first call waits for that.

    Args:
      arguments: abstract, with the shardings that the real ones will have. A call with others compiles anew.
    """
    thread = ThreadPoolExecutor(1)
    compiling = thread.submit(lambda: function.lower(*arguments).compile())
    thread.shutdown(wait=False)

    def call(*arguments: Any) -> Any:
        compiling.result()
        return function(*arguments)

    return call
