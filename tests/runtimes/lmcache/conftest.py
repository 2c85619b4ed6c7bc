import pytest

from driver import adapter


@pytest.fixture
def make():
    """Makes adapters, and closes those that the test has not closed."""
    made = []

    def one(*args, **more):
        made.append(adapter(*args, **more))
        return made[-1]

    yield one
    for each in made:
        each.close()
