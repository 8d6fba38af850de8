"""Figures that explain one video: its alignment with two classes, and the weights at work."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from .explain import Alignment, Explanation
from .figures import ACCENT, BAD, GOOD, HEAT, INK, styled

TOP_FEATURES = 16


def alignment(explanation: Explanation, frames: Sequence[tuple[float, bytes]]) -> go.Figure:
    """Frames, contribution of each step, and the two cost matrices with their paths, over one time axis.

    Args:
        explanation: of the video.
        frames: (seconds, JPEG bytes) pictures of the video; may be empty.
    """
    times, unit = step_times(explanation)
    names = [escape(a.name) for a in (explanation.predicted, explanation.rival)]
    heights = ([0.16] if frames else []) + [0.22, 0.31, 0.31]
    titles = ([""] if frames else []) + [
        f"for {names[0]} (green) or for {names[1]} (red): difference of the costs",
        f"local cost to {names[0]}, distance {explanation.predicted.distance:.4g}",
        f"local cost to {names[1]}, distance {explanation.rival.distance:.4g}",
    ]
    figure = make_subplots(
        rows=len(heights),
        cols=1,
        shared_xaxes=True,
        row_heights=heights,
        vertical_spacing=0.07,
        subplot_titles=titles,
    )
    first = 1
    if frames:
        _add_frames(figure, frames, times)
        first = 2
    gain = explanation.step_gain
    figure.add_bar(
        x=times,
        y=gain,
        marker={"color": [GOOD if g >= 0 else BAD for g in gain]},
        hovertemplate="%{x:.2f}: %{y:+.4g}<extra></extra>",
        row=first,
        col=1,
    )
    both = np.stack([explanation.predicted.local_cost, explanation.rival.local_cost])
    bounds = float(both.min()), float(both.max())
    for row, side in enumerate((explanation.predicted, explanation.rival), start=first + 1):
        _add_costs(figure, side, times, row, bounds)
    figure.update_xaxes(title_text=unit, row=len(heights), col=1)
    styled(figure, 700 if frames else 560, showlegend=False)
    figure.update_xaxes(showgrid=False)
    return figure.update_annotations(font={"size": 12, "color": INK}, xanchor="left", x=0)


def weights(explanation: Explanation) -> go.Figure:
    """Which centroid steps count (mean weight), and the features that decided, by how much."""
    used = explanation.predicted.weights
    gain = explanation.feature_gain
    top = np.argsort(-np.abs(gain), kind="stable")[:TOP_FEATURES]
    names = [escape(explanation.feature_names[i]) for i in top]
    figure = make_subplots(
        rows=2,
        cols=2,
        shared_xaxes="columns",
        shared_yaxes="rows",
        column_widths=[0.7, 0.3],
        row_heights=[0.28, 0.72],
        horizontal_spacing=0.03,
        vertical_spacing=0.06,
        specs=[[{}, None], [{}, {}]],
        subplot_titles=("mean weight of each centroid step", "weights of deciding features", "their gain"),
    )
    steps = np.arange(1, len(used) + 1)
    mean = {"x": steps, "y": used.mean(1), "marker": {"color": ACCENT}}
    figure.add_bar(**mean, hovertemplate="step %{x}: %{y:.3g}<extra></extra>", row=1, col=1)
    figure.add_heatmap(
        x=steps,
        y=names,
        z=used[:, top].T,
        colorscale=HEAT,
        showscale=False,
        hovertemplate="%{y}, step %{x}: weight %{z:.3g}<extra></extra>",
        row=2,
        col=1,
    )
    figure.add_bar(
        x=gain[top],
        y=names,
        orientation="h",
        marker={"color": [GOOD if g >= 0 else BAD for g in gain[top]]},
        hovertemplate="%{y}: %{x:+.4g}<extra></extra>",
        row=2,
        col=2,
    )
    figure.update_yaxes(autorange="reversed", row=2, col=1)
    figure.update_annotations(font={"size": 12})
    figure.update_xaxes(title_text="centroid step", dtick=max(1, len(used) // 8), row=2, col=1)
    return styled(figure, 460, showlegend=False)


def step_times(explanation: Explanation) -> tuple[NDArray[np.floating[Any]], str]:
    """Middle of each step in seconds; the number of the step where the store holds no usable times."""
    middle = (explanation.start_s + explanation.end_s) / 2
    if len(middle) > 1 and not bool((np.diff(middle) > 0).all()):
        return np.arange(1, len(middle) + 1).astype(np.float64), "step"
    return middle, "seconds"


def picture(jpeg: bytes) -> str:
    """A picture as a data URI."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _add_costs(
    figure: go.Figure,
    side: Alignment,
    times: NDArray[np.floating[Any]],
    row: int,
    bounds: tuple[float, float],
) -> None:
    steps = np.arange(1, len(side.lo) + 1)
    figure.add_heatmap(
        x=times,
        y=steps,
        z=side.local_cost.astype(np.float32),
        colorscale=[[0, "#0c2c5e"], [0.5, "#8db7ea"], [1, "#f7f9fc"]],
        zmin=bounds[0],
        zmax=bounds[1],
        showscale=False,
        hovertemplate="at %{x:.2f}, centroid step %{y}: cost %{z:.4g}<extra></extra>",
        row=row,
        col=1,
    )
    corners = [(times[s], t) for t, lo, hi in zip(steps, side.lo, side.hi, strict=True) for s in (lo, hi)]
    figure.add_scatter(
        x=[x for x, _ in corners],
        y=[y for _, y in corners],
        mode="lines+markers",
        line={"color": "#ffb000", "width": 2.5},
        marker={"size": 5},
        hoverinfo="skip",
        row=row,
        col=1,
    )
    edges = [0.5, len(steps) + 0.5]
    figure.update_yaxes(title_text="centroid step", range=edges, row=row, col=1)


def _add_frames(
    figure: go.Figure, frames: Sequence[tuple[float, bytes]], times: NDArray[np.floating[Any]]
) -> None:
    """Pictures in the first row, each centred at its time."""
    width = (float(times[-1] - times[0]) or 1.0) / max(len(frames) - 1, 1)
    for at, jpeg in frames:
        figure.add_layout_image(
            source=picture(jpeg),
            x=at,
            y=0.5,
            sizex=0.96 * width,
            sizey=1,
            xanchor="center",
            yanchor="middle",
            sizing="contain",
            layer="above",
            row=1,
            col=1,
        )
    margin = 0.5 * width
    # An invisible trace: a subplot without one would not draw its pictures.
    figure.add_scatter(
        x=[times[0] - margin, times[-1] + margin], y=[0, 1], mode="none", hoverinfo="skip", row=1, col=1
    )
    figure.update_yaxes(visible=False, range=[0, 1], row=1, col=1)
