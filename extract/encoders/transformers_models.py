"""One door to the transformers library."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ...errors import MissingDependencyError

_CHECKOUT = Path(__file__).resolve().parents[2]


def import_transformers() -> Any:
    """The module `transformers`, its model base loaded.

    Raises:
        MissingDependencyError: it is not installed.
    """
    path = list(sys.path)
    # `python -m` in a checkout puts its folders on the path, and transformers would take our `kernels` for
    # an optional package of that name.
    sys.path[:] = [entry for entry in path if Path(entry or ".").resolve() != _CHECKOUT]
    try:
        import transformers
        import transformers.modeling_utils
    except ImportError:
        raise MissingDependencyError(
            "transformers is not installed", where="extract.encoder", fix="pip install 'dejavid[extract]'"
        ) from None
    except RuntimeError as error:  # a torchvision of another torch, most often
        raise MissingDependencyError(
            f"transformers cannot be imported: {str(error).splitlines()[0]}",
            where="extract.encoder",
            fix="make torchvision fit your torch, or uninstall it",
        ) from None
    finally:
        sys.path[:] = path
    return transformers
