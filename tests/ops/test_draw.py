"""Dashboards as pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree as ET

import pytest

from rayvisor.ops.grafana.dashboards import ALL, render
from rayvisor.ops.grafana.draw import draw, number

if TYPE_CHECKING:
    from rayvisor.ops.prometheus_server import PrometheusServer


class Answers:
    """A Prometheus whose every query has one series, from 1 to 3."""

    def __init__(self, values: list[str]) -> None:
        self.asked: list[str] = []
        self._values = values

    def get(self, what: str, **parameters: str) -> Any:  # noqa: ANN401
        assert what == "query_range"
        self.asked.append(parameters["query"])
        points = [[100.0 + 10 * i, v] for i, v in enumerate(self._values)]
        return {"result": [{"metric": {"vm": "<web>", "host": "a"}, "values": points}]}


def picture(name: str, values: list[str]) -> tuple[ET.Element, Answers]:
    answers = Answers(values)
    made = draw(render(ALL[name]), cast("PrometheusServer", answers), 100.0, 120.0)
    return ET.fromstring(made), answers  # noqa: S314 - our own


@pytest.mark.parametrize("name", ALL)
def test_every_panel_is_drawn_from_its_own_query(name: str) -> None:
    root, answers = picture(name, ["1", "2", "3"])
    said = [e.text for e in root.iter() if e.text]
    assert not any("$" in promql for promql in answers.asked)
    assert len(answers.asked) >= 10
    lines = [e for e in root.iter() if e.tag.endswith("polyline")]
    assert lines
    for line in lines:
        points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
        assert points[0][0] < points[1][0] < points[2][0]
        assert points[0][1] > points[1][1] > points[2][1], "more is higher"
    if name == "vm":
        assert any("<web>" in text for text in said)


def test_what_is_no_number_is_left_out() -> None:
    root, _ = picture("cluster", ["NaN", "NaN"])
    assert not [e for e in root.iter() if e.tag.endswith("polyline")]
    assert "nothing" in {e.text for e in root.iter()}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.4, "percentunit", "40 %"),
        (0.012, "s", "12 ms"),
        (90, "s", "90 s"),
        (0, "s", "0 s"),
        (1536, "bytes", "1.5 KiB"),
        (3 << 30, "Bps", "3 GiB/s"),
        (1500, "ops", "1.5 k/s"),
        (7, "short", "7"),
    ],
)
def test_numbers(value: float, unit: str, text: str) -> None:
    assert number(value, unit) == text
