"""Whether a server can be reached, asked before libraries that would try again for minutes."""

import urllib.error
import urllib.parse
import urllib.request


class NoNetworkError(OSError):
  """What is asked for is not here, and nor is a network to fetch it."""


def check_network(url: str) -> None:
  """Raises NoNetworkError at once where nothing answers there."""
  try:
    urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
  except urllib.error.HTTPError:
    pass  # an answer, whatever it says
  except OSError as error:
    reason = getattr(error, "reason", error)
    raise NoNetworkError(f"no network to {urllib.parse.urlsplit(url).netloc} ({reason})") from error
