"""Which releases of other libraries are supported; any other release raises MissingDependency."""

from importlib.metadata import PackageNotFoundError, version

from workbench.errors import MissingDependency

# oldest supported, newest tested, first not supported; `python -m tests.interop.matrix` tests the first two
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
        supported = f"workbench.interop works with {package} from {oldest} to below {end}, and is tested up to {newest}"
        command = f"pip install '{package}>={oldest},<{end}'"
        try:
            installed = version(package)
        except PackageNotFoundError:
            raise MissingDependency(f"{package} is not installed. {supported}: {command}") from None
        if not _numbers(oldest) <= _numbers(installed) < _numbers(end):
            raise MissingDependency(f"{package} {installed} is installed. {supported}: {command}")


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
