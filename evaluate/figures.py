"""The report's figures: numbers in, plotly figures out.

Plotly reads a small HTML subset in every text, so names that come from a manifest pass `html.escape` first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from .baselines import HEAD
from .evaluation import Evaluation, title
from .metrics import ClassResult, Outcomes, Split, by_length, confusion, reliability

INK, MUTED, GRID = "#1c2330", "#8791a0", "#e8ebf0"
ACCENT, SECOND, GOOD, BAD = "#1f5fbf", "#e07b1a", "#15857b", "#c43c4b"
HEAT = [[0.0, "#ffffff"], [0.02, "#e6effb"], [0.25, "#8db7ea"], [0.6, "#2f6fc4"], [1.0, "#0c2c5e"]]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_MAX_BAR_LABELS = 60


def styled(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """The look that all figures share."""
    figure.update_layout(
        template="none",
        height=height,
        font={"family": _FONT, "size": 12, "color": INK},
        margin={"l": 8, "r": 12, "t": 36, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#c3cad4", "activecolor": MUTED},
        hoverlabel={"bgcolor": "white", "font": {"family": _FONT, "size": 12}},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
    )
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True, "title": {"standoff": 8}}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure.update_layout(**layout)


def accuracies(evaluation: Evaluation) -> go.Figure:
    """Top-1 of every method with its interval, best at the top."""
    rows = sorted(evaluation.summaries.items(), key=lambda row: row[1].top1)
    shares = np.array([summary.top1 for _, summary in rows])
    low, high = np.array([summary.top1_interval for _, summary in rows]).T
    figure = go.Figure(
        go.Scatter(
            x=100 * shares,
            y=[escape(title(name)) for name, _ in rows],
            mode="markers",
            marker={"size": 11, "color": [ACCENT if name == HEAD else MUTED for name, _ in rows]},
            error_x={
                "array": 100 * (high - shares),
                "arrayminus": 100 * (shares - low),
                "color": MUTED,
                "thickness": 1.5,
            },
            hovertemplate="%{y}<br>top-1 %{x:.1f} %<extra></extra>",
        )
    )
    return styled(figure, 90 + 30 * len(rows), xaxis_title="top-1 accuracy, %", yaxis_showgrid=False)


def training_curves(history: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Loss and accuracy by epoch."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=("cross-entropy", "accuracy, %"))
    epochs = [record["epoch"] + 1 for record in history]
    for split, color in (("train", ACCENT), ("val", SECOND)):
        for column, (key, scale) in enumerate((("loss", 1), ("accuracy", 100)), start=1):
            if f"{split}_{key}" in history[0]:
                values = [scale * record[f"{split}_{key}"] for record in history]
                label = "training" if split == "train" else "held-out part of training"
                line = go.Scatter(
                    x=epochs, y=values, name=label, line={"color": color, "width": 2}, legendgroup=split
                )
                figure.add_trace(line.update(showlegend=column == 1), row=1, col=column)
    figure.update_xaxes(title_text="epoch")
    figure.update_annotations(font={"size": 12})
    return styled(
        figure, 300, showlegend="val_loss" in history[0], legend={"orientation": "h", "y": -0.25, "x": 0}
    )


def lengths(evaluation: Evaluation, methods: Sequence[str]) -> go.Figure:
    """Accuracy of some methods by the number of steps of a video."""
    figure = go.Figure()
    for name, color in zip(methods, (ACCENT, SECOND, MUTED), strict=False):
        bins = by_length(evaluation.split, evaluation.outcomes[name])
        shares = np.array([b.n_correct / b.n_videos for b in bins])
        low, high = np.array([b.interval for b in bins]).T
        figure.add_scatter(
            x=[f"{b.shortest}-{b.longest}" if b.shortest < b.longest else f"{b.shortest}" for b in bins],
            y=100 * shares,
            name=escape(title(name)),
            mode="lines+markers",
            line={"color": color, "width": 2},
            error_y={"array": 100 * (high - shares), "arrayminus": 100 * (shares - low), "thickness": 1},
            customdata=[[b.n_correct, b.n_videos] for b in bins],
            hovertemplate="%{x} steps: %{y:.1f} % (%{customdata[0]} of %{customdata[1]})<extra></extra>",
        )
    figure.update_xaxes(title_text="steps of the TSE", type="category")
    return styled(figure, 320, yaxis_title="top-1 accuracy, %")


def calibration(outcomes: Outcomes) -> go.Figure:
    """How often a method is right, by how sure it is."""
    bins = reliability(outcomes)
    figure = go.Figure(
        go.Scatter(
            x=[0, 100], y=[0, 100], mode="lines", line={"color": MUTED, "dash": "dot"}, hoverinfo="skip"
        )
    )
    figure.add_scatter(
        x=[100 * b.confidence for b in bins],
        y=[100 * b.accuracy for b in bins],
        mode="lines+markers",
        line={"color": ACCENT},
        marker={"size": [5 + 2 * math.log1p(b.n_videos) for b in bins]},
        customdata=[b.n_videos for b in bins],
        hovertemplate="%{customdata} videos: %{x:.0f} % sure, %{y:.0f} % right<extra></extra>",
    )
    return styled(figure, 320, showlegend=False, xaxis_title="confidence, %", yaxis_title="right, %")


def class_gains(head: Sequence[ClassResult], other: Sequence[ClassResult]) -> go.Figure:
    """Accuracy of each class minus that of another method, sorted."""
    present = [(a, b) for a, b in zip(head, other, strict=True) if a.n_videos and b.n_videos]
    gains = np.array([100 * (a.n_correct / a.n_videos - b.n_correct / b.n_videos) for a, b in present])
    order = np.argsort(gains, kind="stable")
    counts = [(present[i][0].n_correct, present[i][1].n_correct, present[i][0].n_videos) for i in order]
    figure = go.Figure(
        go.Bar(
            x=[escape(present[i][0].name) for i in order],
            y=gains[order],
            marker={"color": [GOOD if gains[i] >= 0 else BAD for i in order], "line": {"width": 0}},
            customdata=counts,
            hovertemplate=(
                "%{x}<br>%{y:+.1f} points: %{customdata[0]} instead of %{customdata[1]}"
                " of %{customdata[2]}<extra></extra>"
            ),
        )
    )
    figure.update_xaxes(showticklabels=len(order) <= _MAX_BAR_LABELS, type="category")
    return styled(figure, 360, bargap=0.1, yaxis_title="points")


def confusions(split: Split, outcomes: Outcomes) -> go.Figure:
    """The confusion matrix; each row is the share of its class, similar classes stand side by side."""
    counts = confusion(split, outcomes)
    order = _similar_side_by_side(counts)
    counts = counts[np.ix_(order, order)]
    sizes = counts.sum(1, keepdims=True)
    shares = np.divide(100.0 * counts, sizes, out=np.zeros(counts.shape), where=sizes > 0)
    names = [escape(split.class_names[i]) for i in order]
    figure = go.Figure(
        go.Heatmap(
            x=names,
            y=names,
            z=shares.astype(np.float32),
            customdata=counts.astype(np.uint16 if counts.max() < 2**16 else np.uint32),
            colorscale=HEAT,
            zmin=0,
            zmax=100,
            xgap=1 if len(names) <= _MAX_BAR_LABELS else 0,
            ygap=1 if len(names) <= _MAX_BAR_LABELS else 0,
            colorbar={"title": {"text": "% of class"}, "thickness": 10, "len": 0.6},
            hovertemplate="true: %{y}<br>predicted: %{x}<br>%{customdata} videos, %{z:.0f} %<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="predicted", type="category", showgrid=False, tickangle=-60)
    figure.update_yaxes(title_text="true", type="category", autorange="reversed", showgrid=False)
    return styled(figure, min(860, 260 + 24 * len(names)))


def _similar_side_by_side(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """An order of the classes that puts those which are confused with each other next to each other."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(counts) < 3:
        return np.arange(len(counts))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    distance = 1 - np.clip((shares + shares.T) / 2, 0, 1)
    np.fill_diagonal(distance, 0)
    return np.asarray(leaves_list(linkage(squareform(distance, checks=False), "average")), np.int64)
