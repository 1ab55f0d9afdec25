"""Imports from a lower package to a higher one: only the declared ones, each with its reason."""

import pytest

from workbench.lazy_imports import UPWARD, upward


@pytest.mark.parametrize(("importer", "module"), UPWARD)
def test_a_declared_module_is_imported(importer, module):
    assert upward(importer, module).__name__ == module and len(UPWARD[importer, module]) > 10


def test_an_undeclared_import_is_refused_with_the_table_to_declare_it_in():
    with pytest.raises(ImportError, match=r"declare it in workbench\.lazy_imports\.UPWARD"):
        upward("workbench.traces.trace", "workbench.cli")
