"""The kinds of panel that the dashboards are made of, all in one style."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as StatPanel
from grafana_foundation_sdk.builders.timeseries import Panel as TimeseriesPanel
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG: Final = "rayvisor"
SMALL, HALF = 4, 12  # of the 24 columns of a dashboard

RATE: Final = "$__rate_interval"
ON_HOST: Final = 'host=~"$host"'
OF_VM: Final = 'vm=~"$vm"'

Query = tuple[str, str]
"""(PromQL, legend). A legend in Grafana's notation: {{label}}."""

Limits = tuple[float | None, float | None]
"""(from where on it is shown in orange, from where on in red)."""


def stat(
    title: str, unit: str, query: str, *, limits: Limits = (None, None), about: str = ""
) -> StatPanel:
    """One number, with its recent course behind it."""
    panel = (
        StatPanel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .span(SMALL)
        .height(4)
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(limits))
        .with_target(_target(0, (query, "")))
    )
    return panel.decimals(2) if unit in {"none", "percentunit"} else panel


def graph(
    title: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    limits: Limits = (None, None),
    at_most: float | None = None,
    about: str = "",
) -> TimeseriesPanel:
    """Courses over time, with the last and the greatest value of each in the legend."""
    panel = (
        TimeseriesPanel()
        .title(title)
        .description(about)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .span(HALF)
        .height(8)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .show_points(VisibilityMode.NEVER)
        .thresholds(_thresholds(limits))
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
    )
    if stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if at_most is not None:
        panel.max(at_most)
    for number, query in enumerate(queries):
        panel.with_target(_target(number, query))
    return panel


def dashboard(uid: str, title: str, about: str, variables: Sequence[QueryVariable]) -> Dashboard:
    """An empty dashboard with the choice of a Prometheus, and a way to the others."""
    made = (
        Dashboard(title)
        .uid(uid)
        .description(about)
        .tags([TAG])
        .refresh("15s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            DashboardLink("Rayvisor")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(True)
            .keep_time(True)
        )
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for variable in variables:
        made.with_variable(variable)
    return made


def choice(name: str, query: str) -> QueryVariable:
    """A choice of one or more values of a label; all of them at first."""
    return (
        QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _target(number: int, query: Query) -> Dataquery:
    expr, legend = query
    return Dataquery().ref_id(chr(ord("A") + number)).expr(expr).legend_format(legend)


def _thresholds(limits: Limits) -> ThresholdsConfig:
    steps = [Threshold(value=None, color="green")]
    for value, colour in zip(limits, ("orange", "red"), strict=True):
        if value is not None:
            steps.append(Threshold(value=value, color=colour))
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
