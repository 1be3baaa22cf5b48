import pytest

from tests.cases.stages import filled_classifier


@pytest.fixture
def stage1(tmp_path):
    """The checkpoint of a classifier."""
    return filled_classifier(tmp_path)
