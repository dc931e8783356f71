"""What is written of settings is what the code reads: docs/settings.md, and the names that the chart takes."""

from tools.write_settings import CHART_SCHEMA, DOCUMENT, SECTIONS, chart_schema, document

WHAT_TO_DO = "run python -m tools.write_settings and commit what it writes"


def test_the_committed_table_is_that_of_the_code() -> None:
    assert DOCUMENT.read_text() == document(), WHAT_TO_DO


def test_the_chart_takes_the_settings_that_there_are() -> None:
    assert CHART_SCHEMA.read_text() == chart_schema(), WHAT_TO_DO


def test_every_setting_says_what_it_means() -> None:
    for settings, _ in SECTIONS.values():
        assert [name for name, field in settings.model_fields.items() if not field.description] == []
