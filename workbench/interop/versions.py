"""Which releases of other libraries are supported, and an error that says so for any other."""

from importlib.metadata import PackageNotFoundError, version

from workbench.errors import MissingDependency

# oldest supported, newest tested, first not supported: `python -m tests.interop.matrix` runs the two in the middle
SUPPORTED: dict[str, tuple[str, str, str]] = {
    "transformers": ("5.9.0", "5.24.0", "6"),
    "nnsight": ("0.8.0", "0.8.1", "0.9"),
    "transformer-lens": ("4.0.0", "4.3.0", "5"),
}


def check_release(*packages: str) -> None:
    """Raises MissingDependency unless each of `packages` is installed in a supported release.

    >>> check_release("transformers")
    """
    for package in packages:
        oldest, newest, end = SUPPORTED[package]
        wanted = f"workbench.interop works with {package} from {oldest} to below {end}, and is tested up to {newest}"
        cure = f"pip install '{package}>={oldest},<{end}'"
        try:
            found = version(package)
        except PackageNotFoundError:
            raise MissingDependency(f"{package} is not installed. {wanted}: {cure}") from None
        if not _numbers(oldest) <= _numbers(found) < _numbers(end):
            raise MissingDependency(f"{package} {found} is installed. {wanted}: {cure}")


def _numbers(release: str) -> tuple[int, ...]:
    """
    >>> _numbers("5.24.0rc1") >= _numbers("5.9.0"), _numbers("6.0.0.dev0") < _numbers("6")
    (True, False)
    """
    numbers = []
    for part in release.split(".")[:3]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)
