"""With whom a request shares codes: what its parameters, or a header, say of that.

Queries that are encoded together can influence, and learn about, each other:
docs/explanation/isolation.md. A request can ask for exact answers, which shares with nobody, or
name the tenant that it shares with. Where the operator names a header, that header alone decides
who the tenant is.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from parity_models.errors import OptionError
from parity_models.serving.errors import InvalidRequestError
from parity_models.serving.protocol import InferRequest, tenant_from

_HEADER = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}", re.ASCII)


def with_tenant(
    asked: InferRequest, header: str | None, values: Callable[[str], Sequence[str]]
) -> InferRequest:
    """The request, with the tenant that `header` names; `values` gives all values of a header.

    Where a header was named at the start, a request without it belongs to nobody known: it is
    served exact, whatever its parameters say. Raises InvalidRequestError where the header is given
    twice, is no tenant's name or contradicts the parameter.
    """
    if header is None:
        return asked
    given = values(header)
    if len(given) > 1:
        raise InvalidRequestError(f"the header {header} is given {len(given)} times; give it once")
    if not given:
        return replace(asked, exact=True, tenant=None)
    tenant = tenant_from(given[0], f"the header {header}")
    if asked.tenant is not None and asked.tenant != tenant:
        raise InvalidRequestError(
            f"the parameter tenant is {asked.tenant!r} and the header {header} is {tenant!r}; "
            "leave out the parameter"
        )
    return replace(asked, tenant=tenant)


def tenant_header(name: str) -> str:
    """The header's name, in lower case. Raises UserError if HTTP or gRPC cannot carry it."""
    lower = name.lower()
    if _HEADER.fullmatch(lower) is None or lower.startswith("grpc-") or lower.endswith("-bin"):
        raise OptionError(
            f"--tenant-header is the name of a header: letters, digits, '-', '_' and "
            f"'.', at most 100, and neither grpc-... nor ...-bin; got {name!r}"
        )
    return lower
