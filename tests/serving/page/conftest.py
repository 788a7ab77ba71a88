"""A browser and pages in it."""

from __future__ import annotations

import functools

import pytest
from chat_page import ARGUMENTS, CHROMIUM, StandIn, Visit, serving
from playwright.sync_api import sync_playwright


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser):
    """The shared context, whose cache holds the page's files."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def opened(browser, context):
    """Open the page at an address; check that it has no errors and sends no other requests."""
    visits = []

    def open_page(address: str, **options) -> Visit:
        own = browser.new_context(**options) if options else context
        visits.append(Visit(own, address))
        return visits[-1]

    yield open_page
    for visit in visits:
        outside = [url for url in visit.urls if not url.startswith((visit.address, "blob:"))]
        visit.page.close()
        assert not outside
        assert not visit.problems


@pytest.fixture(scope="module")
def standing_in():
    stand_in = StandIn()
    with serving(stand_in.app) as stand_in.address:
        yield stand_in


@pytest.fixture
def stand_in(standing_in) -> StandIn:
    standing_in.reset()
    return standing_in


@pytest.fixture
def visit(opened, stand_in):
    """Open the page of the stand-in."""
    return functools.partial(opened, stand_in.address)


@pytest.fixture(scope="module")
def reading(browser, standing_in):
    """A shared page for tests that do not change it."""
    context = browser.new_context()
    yield Visit(context, standing_in.address)
    context.close()
