"""Damaged files of every kind: what reads them gives a result, or an error of one line. fuzz.py has more."""

import pytest

import fuzz


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_damaged_files_are_read_or_refused(name):
    _, refused, failures = fuzz.fuzz(name, cases=200, seed=0)
    assert not failures and refused
